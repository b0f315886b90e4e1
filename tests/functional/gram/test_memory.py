"""A Gram matrix leaves nothing behind but itself."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.gram import layerwise, recorder
from lightning_fisher.models import resnet


def _live_bytes():
    gc.collect()
    tensors = (t for t in gc.get_objects() if isinstance(t, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("fails", [False, True])
def test_no_activation_outlives_the_call(fails):
    net = resnet(depth=8, width=4).eval()
    inputs, targets = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))

    def call():
        if not fails:
            gram_matrix(net, inputs, targets)
            return
        with pytest.raises(ValueError, match="Expected"):
            gram_matrix(net, inputs, targets + 10)

    call()
    before = _live_bytes()
    for _ in range(3):
        call()
    assert _live_bytes() - before < 4096  # one layer's input alone is larger


def test_layers_let_go_of_their_inputs_as_soon_as_they_are_done(monkeypatch):
    """When the first layer's gradient arrives nothing but its own input is held."""
    held = []
    add = layerwise._Contributions._add

    def spy(self, use):
        add(self, use)
        held.append(sum(u.input.numel() for u in uses))

    uses = []
    call = recorder.Recorder._call

    def note(self, *args):
        output = call(self, *args)
        if self.on_gradient is not None:
            uses.append(self.uses[-1])
        return output

    monkeypatch.setattr(layerwise._Contributions, "_add", spy)
    monkeypatch.setattr(recorder.Recorder, "_call", note)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    gram_matrix(net, torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    assert held == [5 * (4 + 8), 5 * 4, 0]

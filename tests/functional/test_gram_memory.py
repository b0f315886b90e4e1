"""A Gram matrix leaves nothing behind but itself."""

from __future__ import annotations

import gc

import pytest
import torch

from lightning_fisher.functional import gram_matrix
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

"""Methods that differentiate a pass twice, on compiled networks, whose graphs refuse that: they run eagerly."""

from __future__ import annotations

import functools

import pytest
import torch

from lightning_fisher import JacobianPenalty
from lightning_fisher.experiment.methods import UseLargeMarginLoss
from lightning_fisher.module import ImageClassifier
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded


def test_bit_for_bit_as_on_the_network_itself(fit):
    found = []
    for compiled in (False, True):
        module = Classifier(seeded(mlp))
        if compiled:
            module.net.compile()
        fit(module, image_batches([8] * 3), JacobianPenalty(0.1, projections=None))
        found.append(module.net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


def test_the_large_margin_loss_too():
    found = []
    for compiled in (False, True):
        module = ImageClassifier(seeded(mlp), functools.partial(torch.optim.SGD, lr=0.1), compile=compiled)
        ((x, y),) = image_batches([8])
        UseLargeMarginLoss().criterion(module, x, y)[1].backward()
        found.append([p.grad for p in module.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_compiled_graph_does_refuse():
    """Without which they could run compiled."""
    net = seeded(mlp)
    net.compile(backend="aot_eager")
    x = torch.randn(4, 1, 6, 6, requires_grad=True)

    def twice():
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()

    with pytest.raises(RuntimeError, match=r"double backward|create_graph=False"):  # by the second pass, or the first
        twice()

"""Rules of vmap that are wrong: torch's own (2.14: `cdist` of a tensor with itself), or those of one's own function.

The expected values are those of a loop in float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import penalty_gradient
from lightning_fisher.functional.multipass.vmap import penalty
from tests.reference import plain


class Kernel(nn.Module):
    """Points that all samples are compared with, and with each other."""

    def __init__(self):
        super().__init__()
        self.inner, self.points = nn.Linear(5, 3), nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        prior = torch.exp(-torch.cdist(self.points, self.points).square())
        return torch.exp(-torch.cdist(self.inner(x), self.points).square()) @ prior


class Square(torch.autograd.Function):
    """x², whose rule under vmap is another function."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient

    @staticmethod
    def vmap(info, in_dims, x):
        return 1.1 * x.square(), in_dims[0]


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.outer(Square.apply(self.inner(x)))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 5, generator=generator).double(), torch.randint(4, (6,), generator=generator)


@pytest.mark.parametrize("build", [Kernel, OwnFunction])
def test_wrong_rules_of_vmap_are_refused(build, batch):
    torch.manual_seed(0)
    module = build().double()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"not those of an ordinary pass.*choose"):
            penalty_gradient(module, *batch, alpha=1e-2, num_sub_batches=3, passes="vmap")
    parts = [torch.arange(6)[i : i + 2] for i in (0, 2, 4)]
    value, gradient = plain.penalty(module, *batch, parts, [1 / 3] * 3, 1e-2, cross_entropy)
    found, gradients = penalty_gradient(module, *batch, alpha=1e-2, num_sub_batches=3)
    assert found.item() == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(plain.flat(gradients), plain.flat(gradient), rtol=1e-6, atol=1e-12)


def test_one_comparison_for_a_module_a_structure_and_a_loss(batch, monkeypatch):
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    compared = []
    compare = penalty.compare
    monkeypatch.setattr(penalty, "compare", lambda *args: compared.append(compare(*args)))

    def mean(outputs, targets):
        return cross_entropy(outputs, targets)

    x, y = batch
    for inputs, targets, loss in ((x, y, None), (x + 1, y, None), (x, y, mean), (-x, y, mean)):
        penalty_gradient(module, inputs, targets, num_sub_batches=3, loss_fn=loss, passes="vmap")
    assert len(compared) == 4  # at w and at the end of the step, for either loss
    penalty_gradient(module, x, y, num_sub_batches=2, passes="vmap")
    assert len(compared) == 6


def test_random_losses_are_not_compared(batch):
    module = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 4)).double().train()
    value, _ = penalty_gradient(module, *batch, num_sub_batches=3, passes="vmap")
    assert torch.isfinite(value)

"""The Fisher–Rao norm of samples that affect each other is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional.measures import fisher_rao_norm

N = 8
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3


class CoupledBackward(torch.autograd.Function):
    """The identity, whose gradients are averaged over the batch."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 0.5 * gradient + 0.5 * gradient.mean(0)


class Coupled(nn.Module):
    def __init__(self, between):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.between = between

    def forward(self, x):
        return self.out(self.between(self.body(x).tanh()))


COUPLED = {
    "roll": lambda h: h + h.roll(1, 0),
    "mean": lambda h: h - h.mean(0),
    "softmax": lambda h: h * h.softmax(0),
    "backward only": CoupledBackward.apply,
    "last sample": lambda h: torch.cat([h[:-1], h[-1:] + h[:1] * (len(h) > 1)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_samples_are_refused(name, dtype):
    with pytest.raises(InteractionError):
        fisher_rao_norm(Coupled(COUPLED[name]).to(dtype), X.to(dtype), Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ordinary_ones_are_not(dtype):
    module = Coupled(lambda h: h - h.mean(1, keepdim=True)).to(dtype)
    rows = []
    for j in range(N):
        loss = nn.functional.cross_entropy(module(X[j : j + 1].to(dtype)), Y[j : j + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    expected = (torch.stack(rows) @ weights).double().square().mean().sqrt().item()
    assert fisher_rao_norm(module, X.to(dtype), Y).item() == pytest.approx(expected, rel=1e-5)

"""Robustness and Hessian products where samples interact: in values, in gradients only, in the last two only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional import hessian_frobenius_norm, robustness
from tests.reference.interactions import INTERACTIONS, Net

N = 8


def normal(seed, dtype):
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("between", INTERACTIONS.values(), ids=INTERACTIONS)
@pytest.mark.parametrize("method", ["exact", "power"])
def test_robustness_refuses(between, dtype, method):
    module, x = Net(between, 3).to(dtype), normal(0, dtype)
    with pytest.raises(ValueError, match="Expected samples that don't interact"):
        robustness(module, x, method=method)
    with pytest.raises(ValueError, match="Expected samples that don't interact"):
        robustness(module, x, method=method, chunk_size=4)
    assert robustness(Net(torch.sin, 3).to(dtype), x, method=method) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("between", INTERACTIONS.values(), ids=INTERACTIONS)
def test_chunks_of_a_hessian_refuse(between, dtype):
    module, x = Net(between, 3).to(dtype), normal(0, dtype)
    with pytest.raises(ValueError, match="Expected samples that don't interact"):
        hessian_frobenius_norm(module, x, torch.arange(N) % 3, chunk_size=5)
    expected = hessian_frobenius_norm(Net(torch.sin, 3).to(dtype), x, torch.arange(N) % 3)
    got = hessian_frobenius_norm(Net(torch.sin, 3).to(dtype), x, torch.arange(N) % 3, chunk_size=3)
    assert got.value.item() == pytest.approx(expected.value.item(), rel=1e-4)


class Sinkhorn(nn.Module):
    """Ends with columns that add up to one, and averages them: constant outputs, gradients that are only rounding."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        scores = self.inner(x)
        for _ in range(3):
            scores = scores - scores.logsumexp(2, keepdim=True)
            scores = scores - scores.logsumexp(1, keepdim=True)
        return self.outer(scores.exp().mean(1))


class Normalized(nn.Module):
    """The length of a normalized vector doesn't change."""

    def __init__(self, coupled=False):
        super().__init__()
        self.inner, self.outer, self.coupled = nn.Linear(4, 6), nn.Linear(1, 3), coupled

    def forward(self, x):
        hidden = nn.functional.normalize(self.inner(x).mean(1), dim=1)
        if self.coupled:  # in the backward pass only
            other = hidden.roll(1, 0)
            hidden = hidden + 1e-3 * (other - other.detach())
        return self.outer(hidden.square().sum(1, keepdim=True))


@pytest.mark.parametrize("build", [Sinkhorn, Normalized])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_are_only_rounding_don_t_reach_other_samples(build, dtype):
    torch.manual_seed(0)
    found = robustness(build().to(dtype), torch.randn(6, 5, 4).to(dtype), reduction="none")
    assert found.abs().max() <= 1e-10


def test_a_coupling_beside_gradients_that_are_only_rounding_is_refused():
    torch.manual_seed(0)
    with pytest.raises(InteractionError):
        robustness(Normalized(coupled=True).double(), torch.randn(6, 5, 4).double())

"""Robustness and Hessian products where samples interact: in values, in gradients only, in the last two only."""

from __future__ import annotations

import pytest
import torch

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

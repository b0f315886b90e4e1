"""The Hessian's norms against other people's code, where it is installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional.curvature.hessian import mean_loss_hessian
from lightning_fisher.functional.curvature.norms import hessian_frobenius_norm, hessian_spectral_radius
from tests.reference.cases import by_name, each

# No layer norm: forward mode over reverse mode, curvlinops' engine, is wrong there (pytorch/pytorch#196700).
CASES = [by_name(name) for name in ("mlp", "conv2d_padded", "batch_norm2d", "conv2d_groups", "soft_labels")]


@each(CASES)
def test_products_and_norms_equal_curvlinops(case):
    curvlinops = pytest.importorskip("curvlinops")
    module, inputs, targets = case.build()
    module.eval()
    parameters = list(module.parameters())
    peer = curvlinops.HessianLinearOperator(module, nn.CrossEntropyLoss(), parameters, [(inputs, targets)])
    size = peer.shape[0]
    vector = torch.randn(size, dtype=torch.float64)
    with mean_loss_hessian(module, inputs, targets, chunk_size=2) as product:
        torch.testing.assert_close(product(vector), (peer @ vector).detach(), rtol=1e-9, atol=1e-12)
    dense = (peer @ torch.eye(size, dtype=torch.float64)).detach()
    exact = hessian_frobenius_norm(module, inputs, targets, num_probes=size).value
    torch.testing.assert_close(exact, dense.square().sum(), rtol=1e-6, atol=0)
    radius = hessian_spectral_radius(module, inputs, targets, tol=1e-8, max_iter=500).value
    torch.testing.assert_close(radius, torch.linalg.eigvalsh(dense).abs().max(), rtol=1e-6, atol=0)


@each(CASES[:4])
def test_spectral_radius_equals_pyhessian(case):
    pyhessian = pytest.importorskip("pyhessian")
    module, inputs, targets = case.build()
    peer = pyhessian.hessian(module.eval(), nn.CrossEntropyLoss(), data=(inputs, targets), cuda=False)
    (expected,), _ = peer.eigenvalues(maxIter=2000, tol=1e-10)
    result = hessian_spectral_radius(module, inputs, targets, tol=1e-6, max_iter=500)
    assert result.value.item() == pytest.approx(abs(expected), rel=1e-5)

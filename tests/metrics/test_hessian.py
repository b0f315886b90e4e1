from __future__ import annotations

import pytest
import torch

from lightning_fisher.metrics import HessianFrobeniusMetric, HessianSpectralRadiusMetric
from tests.metrics.subsets import network, subsets, updated
from tests.reference.dense_hessian import dense_hessian


@pytest.fixture(scope="module")
def hessians():
    return [dense_hessian(network(), *part) for part in subsets(3)]


def test_frobenius_norm_equals_dense_hessians(hessians):
    size = len(hessians[0])
    result = updated(HessianFrobeniusMetric(num_probes=size, chunk_size=3), subsets(3)).compute()
    norms = torch.stack([hessian.square().sum() for hessian in hessians])
    torch.testing.assert_close(result["hessian_frobenius_norm"], norms.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(result["hessian_frobenius_norm_std"], norms.std(), rtol=1e-6, atol=0)
    assert result["hessian_frobenius_norm_error"] == 0


def test_frobenius_norm_reports_its_estimation_error(hessians):
    result = updated(HessianFrobeniusMetric(num_probes=15), subsets(3)).compute()
    error = result["hessian_frobenius_norm_error"]
    exact = torch.stack([hessian.square().sum() for hessian in hessians]).mean()
    assert 0 < abs(result["hessian_frobenius_norm"] - exact) < 4 * error
    more = updated(HessianFrobeniusMetric(num_probes=60), subsets(3)).compute()
    assert more["hessian_frobenius_norm_error"] < 0.8 * error
    assert updated(HessianFrobeniusMetric(num_probes=15, seed=1), subsets(3)).compute() != result


def test_spectral_radius_equals_dense_hessians(hessians):
    result = updated(HessianSpectralRadiusMetric(tol=1e-7, max_iter=400, chunk_size=3), subsets(3)).compute()
    radii = torch.stack([torch.linalg.eigvalsh(hessian).abs().max() for hessian in hessians])
    torch.testing.assert_close(result["hessian_spectral_radius"], radii.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(result["hessian_spectral_radius_std"], radii.std(), rtol=1e-6, atol=0)
    assert result["hessian_spectral_radius_converged"] == 1


@pytest.mark.filterwarnings("ignore:The spectral radius did not converge")
def test_share_of_converged_subsets():
    (part,) = subsets(1)
    metric = updated(HessianSpectralRadiusMetric(tol=1e-12, max_iter=2), [part])
    metric.tol = 10.0
    assert updated(metric, [part]).compute()["hessian_spectral_radius_converged"] == 0.5


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HessianFrobeniusMetric, {"num_probes": 0}),
        (HessianFrobeniusMetric, {"chunk_size": 0}),
        (HessianSpectralRadiusMetric, {"tol": -1.0}),
        (HessianSpectralRadiusMetric, {"max_iter": 0}),
        (HessianSpectralRadiusMetric, {"chunk_size": 0}),
    ],
)
def test_bad_options_are_named_at_once(kind, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be .*, but got {value}"):
        kind(**options)

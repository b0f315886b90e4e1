from __future__ import annotations

import torch

from lightning_fisher.metrics import FrobeniusNormMetric, SpectralRadiusMetric
from tests.metrics.subsets import N, network, subsets, updated
from tests.reference.jacobian import jacobian


def test_equal_the_dense_fisher_information_averaged_over_subsets():
    parts = subsets(3)
    fishers = [j.T @ j / N for j in (jacobian(network(), *part) for part in parts)]
    norms = torch.stack([fisher.square().sum() for fisher in fishers])
    radii = torch.stack([torch.linalg.eigvalsh(fisher)[-1] for fisher in fishers])
    frobenius = updated(FrobeniusNormMetric(), parts).compute()
    radius = updated(SpectralRadiusMetric(), parts).compute()
    assert list(frobenius) == ["frobenius_norm", "frobenius_norm_std"]
    assert list(radius) == ["spectral_radius", "spectral_radius_std"]
    torch.testing.assert_close(frobenius["frobenius_norm"], norms.mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(frobenius["frobenius_norm_std"], norms.std(), rtol=1e-7, atol=0)
    torch.testing.assert_close(radius["spectral_radius"], radii.mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(radius["spectral_radius_std"], radii.std(), rtol=1e-7, atol=0)


def test_float32_network_at_a_tiny_loss():
    """Gradients of 1e-12: their squares' squares underflow in float32, not here."""
    net = network(torch.float32)
    with torch.no_grad():
        net[5].weight.mul_(0)
        net[5].bias.copy_(torch.tensor([28.0, 0.0, 0.0]))
    inputs, targets = subsets(1, dtype=torch.float32)[0][0], torch.zeros(N, dtype=torch.long)
    exact = jacobian(net, inputs, targets)
    result = updated(FrobeniusNormMetric(), [(inputs, targets)], net).compute()["frobenius_norm"]
    torch.testing.assert_close(result, (exact @ exact.T).square().sum() / N**2, rtol=1e-4, atol=0)
    assert 0 < result < 1e-40

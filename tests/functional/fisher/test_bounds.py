from __future__ import annotations

import math

import pytest
import torch

from lightning_fisher.functional.fisher.bounds import (
    estimate_from_gamma,
    fia,
    gamma_from_estimate,
    log_bound_term,
    log_ellipsoid_height,
    theorem1_bound,
)

SIZES = {"num_parameters": 1000, "subset_size": 100}


def test_equation_7_written_out():
    assert gamma_from_estimate(-979.3, num_parameters=270_000, subset_size=100) == pytest.approx(
        270_000 / 100 * -979.3 + 270_000 * math.log(1 / 270_000), rel=1e-15
    )


@pytest.mark.parametrize("gamma", [-1e7, -3.0, 0.0, 12.5])
def test_equation_7_inverts(gamma):
    assert gamma_from_estimate(estimate_from_gamma(gamma, **SIZES), **SIZES) == pytest.approx(gamma, abs=1e-8)
    assert estimate_from_gamma(gamma_from_estimate(gamma, **SIZES), **SIZES) == pytest.approx(gamma, abs=1e-8)


def test_equation_7_is_exact_for_white_gradients():
    """Independent gradients of unit variance: ``I = 1``, γ = 0, and ``ξ → W · 1`` for W ≫ N′."""
    rows = torch.randn(8, 400_000)
    estimate = torch.logdet((rows @ rows.T).double())
    assert gamma_from_estimate(estimate, num_parameters=400_000, subset_size=8) / 400_000 == pytest.approx(0, abs=5e-3)


def ellipsoid(dimension):
    root = torch.randn(dimension, dimension, dtype=torch.float64)
    return root @ root.T / dimension + 0.1 * torch.eye(dimension, dtype=torch.float64)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_height_against_the_ellipsoids_volume_by_monte_carlo(dimension):
    matrix, volume = ellipsoid(dimension), 0.7
    height = math.exp(log_ellipsoid_height(torch.logdet(matrix), num_parameters=dimension, log_volume=math.log(volume)))
    # The box that just holds {½ wᵀ M w ≤ h} reaches √(2 h (M⁻¹)_ii) along axis i.
    reach = (2 * height * torch.linalg.inv(matrix).diagonal()).sqrt()
    points = (2 * torch.rand(400_000, dimension, dtype=torch.float64) - 1) * reach
    inside = 0.5 * torch.einsum("ni,ij,nj->n", points, matrix, points) <= height
    measured = float(inside.double().mean() * (2 * reach).prod())
    assert measured == pytest.approx(volume, rel=0.02)


def test_height_in_the_plane_is_that_of_an_ellipse():
    """Half-axes ``√(2h/λ)``: area ``2πh/√|I|``."""
    area, first, second = 0.3, 4.0, 9.0
    log_height = log_ellipsoid_height(math.log(first * second), num_parameters=2, log_volume=math.log(area))
    axes = [math.sqrt(2 * math.exp(log_height) / value) for value in (first, second)]
    assert math.pi * axes[0] * axes[1] == pytest.approx(area, rel=1e-14)


@pytest.mark.parametrize("num_parameters", [1, 10, 100, 10_000, 10**6, 10**8])
def test_bound_term_is_the_height_by_stirling(num_parameters):
    """``ln h − ln A = ln W / W``, but for the ``1/(3 W²)`` that Stirling's formula leaves out."""
    options = {"num_parameters": num_parameters, "log_volume": -2.5 * num_parameters}
    gamma = -14.0 * num_parameters
    gap = log_ellipsoid_height(gamma, **options) - log_bound_term(gamma, **options)
    remainder = gap - math.log(num_parameters) / num_parameters
    assert remainder == pytest.approx(1 / (3 * num_parameters**2), rel=0.1, abs=1e-8)


def test_bound_term_written_out():
    w, log_volume, gamma = 7, 0.4, -3.0
    expected = 1 / (4 * math.pi * math.e) * w * math.exp(log_volume) ** (2 / w) * math.pi ** (1 / w)
    expected *= math.exp(gamma / w)
    term = math.exp(log_bound_term(gamma, num_parameters=w, log_volume=log_volume))
    assert term == pytest.approx(expected, rel=1e-14)


def test_theorem_1_written_out():
    w, n, log_volume, gamma, delta = 7, 50, 0.4, -3.0, 0.1
    a = 1 / (4 * math.pi * math.e) * w * math.exp(log_volume) ** (2 / w) * math.pi ** (1 / w) * math.exp(gamma / w)
    expected = 0.2 + 2 * math.sqrt((2 * 0.1 + 2 * a + math.log(2 * n / delta)) / (n - 1))
    bound = theorem1_bound(
        torch.tensor(0.2, dtype=torch.float64),
        minimum_loss=0.1,
        gamma=torch.tensor(gamma),
        num_parameters=w,
        num_samples=n,
        log_volume=log_volume,
        delta=delta,
    )
    assert bound == pytest.approx(expected, rel=1e-14)


def bound_of(**changes):
    options = {"minimum_loss": 0.01, "gamma": -14e6, "num_parameters": 10**6, "num_samples": 50_000}
    return theorem1_bound(changes.pop("train_loss", 0.02), **{**options, "log_volume": -1e5, **changes})


def test_theorem_1_at_a_million_parameters():
    """Neither V nor |I| fits a float there."""
    assert 0.02 < bound_of() < 1
    assert bound_of(gamma=-14e6) < bound_of(gamma=-13e6) < bound_of(gamma=-12e6)
    assert bound_of(num_samples=10**6) < bound_of()
    assert bound_of(delta=0.5) < bound_of(delta=0.001)
    assert bound_of(gamma=1e12) == math.inf


def test_fia_is_half_gamma_but_for_constants():
    sizes = {"num_parameters": 100, "num_samples": 1000, "log_volume": -40.0}
    assert fia(0.0, gamma=-300.0, **sizes) - fia(0.0, gamma=-500.0, **sizes) == pytest.approx(100.0)
    assert fia(0.5, gamma=-300.0, **sizes) == pytest.approx(
        1000 * 0.5 + 50 * math.log(1000 / (2 * math.pi)) - 40.0 - 150.0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 1}, "`num_samples` to be at least 2, but got 1"),
        ({"num_parameters": 0}, "`num_parameters` to be at least 1, but got 0"),
        ({"delta": 0.0}, "`delta` to be between 0 and 1, but got 0.0"),
        ({"delta": 1.0}, "`delta` to be between 0 and 1, but got 1.0"),
        ({"train_loss": -0.1}, "`train_loss` to be at least 0, but got -0.1"),
        ({"minimum_loss": math.nan}, "`minimum_loss` to be at least 0, but got nan"),
    ],
)
def test_arguments_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        bound_of(**changes)


@pytest.mark.parametrize("function", [gamma_from_estimate, estimate_from_gamma])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_positive(function, name):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be at least 1, but got 0"):
        function(1.0, **{**SIZES, name: 0})

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_fisher.functional.ranking import bootstrap_interval, kendall_tau, partial_kendall_tau


def tau(x, y):
    return float(scipy.stats.kendalltau(x.numpy(), y.numpy()).statistic)


def runs(k, n=30, seed=0, levels=None):
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(k, n, generator=generator)
    x, y = given.sum(0) + torch.randn(2, n, generator=generator)
    return [t if levels is None else (levels * t).round() for t in (x, y, given)]


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_one_control_is_kendalls_formula(seed, levels):
    x, y, given = runs(1, seed=seed, levels=levels)
    xy, xz, yz = tau(x, y), tau(x, given[0]), tau(y, given[0])
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert float(partial_kendall_tau(x, y, given)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3])
def test_several_controls_are_the_inverse_of_the_matrix(k):
    x, y, given = runs(k)
    columns = [x, y, *given]
    inverse = np.linalg.inv([[tau(a, b) for b in columns] for a in columns])
    expected = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
    assert float(partial_kendall_tau(x, y, given)) == pytest.approx(expected, abs=1e-10)


def test_redundant_and_constant_controls_change_nothing():
    x, y, given = runs(2)
    expected = partial_kendall_tau(x, y, given)
    more = torch.cat([given, given[:1].exp(), -given[1:], torch.ones(1, 30)])
    torch.testing.assert_close(partial_kendall_tau(x, y, more), expected)
    torch.testing.assert_close(partial_kendall_tau(x, y, torch.ones(1, 30)), kendall_tau(x, y))
    torch.testing.assert_close(partial_kendall_tau(x, y, torch.empty(0, 30)), kendall_tau(x, y))


def test_a_measure_that_is_a_control_in_disguise_is_undefined():
    x, y, given = runs(2)
    assert partial_kendall_tau(given[0].exp(), y, given).isnan()
    assert partial_kendall_tau(x, -given[1], given).isnan()


@pytest.mark.parametrize("where", ["x", "y", "given"])
def test_nan_is_nan(where):
    parts = dict(zip(("x", "y", "given"), runs(1), strict=True))
    parts[where] = parts[where].clone()
    parts[where][..., 3] = math.nan
    assert partial_kendall_tau(**parts).isnan()


def test_constant_is_nan():
    x, y, given = runs(1)
    assert partial_kendall_tau(torch.ones(30), y, given).isnan()
    assert partial_kendall_tau(x, torch.ones(30), given).isnan()


def test_leading_dimensions_and_intervals():
    x, y, given = runs(2, n=20)
    batch = partial_kendall_tau(torch.stack([x, y]), torch.stack([y, x]), torch.stack([given, given]))
    torch.testing.assert_close(batch, partial_kendall_tau(x, y, given).expand(2))
    low, high = bootstrap_interval(partial_kendall_tau, x, y, given=given, num_resamples=300)
    draws = torch.randint(20, (300, 20), generator=torch.Generator().manual_seed(0))
    one_by_one = torch.stack([partial_kendall_tau(x[d], y[d], given[:, d]) for d in draws])
    torch.testing.assert_close(torch.stack([low, high]), torch.nanquantile(one_by_one, low.new_tensor([0.025, 0.975])))


def test_bad_shape_is_named():
    x, y, given = runs(1)
    with pytest.raises(ValueError, match=r"Expected argument `given` to have shape .*k, n.*, but got \(30,\)"):
        partial_kendall_tau(x, y, given[0])
    with pytest.raises(ValueError, match=r"Expected argument `given` to have shape \[k, 30\], but got \(1, 29\)"):
        bootstrap_interval(partial_kendall_tau, x, y, given=given[:, 1:])

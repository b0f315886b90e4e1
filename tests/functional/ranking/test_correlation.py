from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_fisher.functional.ranking import bootstrap_interval, kendall_tau, spearman_rho

PEERS = {kendall_tau: scipy.stats.kendalltau, spearman_rho: scipy.stats.spearmanr}
both = pytest.mark.parametrize("statistic", PEERS, ids=lambda f: f.__name__)


def expected(statistic, x, y):
    return float(PEERS[statistic](x.numpy(), y.numpy()).statistic)


@both
@pytest.mark.parametrize("n", [2, 3, 10, 57])
@pytest.mark.parametrize("levels", [None, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_equals_scipy_with_and_without_ties(statistic, n, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        x, y = torch.randn(2, n, generator=generator)
    else:
        x, y = torch.randint(levels, (2, n), generator=generator)
        x[:2], y[:2] = torch.tensor([0, 1]), torch.tensor([1, 0])  # not constant
    assert float(statistic(x, y)) == pytest.approx(expected(statistic, x, y), abs=1e-12)


@both
def test_tie_in_one_only_and_infinities(statistic):
    x = torch.tensor([-math.inf, -3.0, -3.0, 2.0, math.inf, math.inf])
    y = torch.tensor([1.0, 5.0, 2.0, 2.0, 7.0, 6.0])
    assert float(statistic(x, y)) == pytest.approx(expected(statistic, x, y), abs=1e-12)


@both
def test_large_values_that_differ_in_the_last_bit(statistic):
    x = torch.tensor([1e15, 1e15 + 1, 1e15 + 2], dtype=torch.float64)
    assert statistic(x, torch.arange(3)) == 1
    assert statistic(-x, torch.arange(3)) == -1


@both
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]),
        ([1.0, math.nan, 3.0], [1.0, 2.0, 3.0]),
        ([1.0], [2.0]),
        ([], []),
    ],
    ids=["constant x", "constant y", "nan", "one run", "no run"],
)
def test_undefined_is_nan(statistic, x, y):
    x, y = torch.tensor(x), torch.tensor(y)
    assert statistic(x, y).isnan()
    assert all(end.isnan() for end in bootstrap_interval(statistic, x, y))


@both
def test_leading_dimensions_are_independent_problems(statistic):
    x, y = torch.randint(4, (2, 3, 5, 12))
    result = statistic(x, y)
    assert result.shape == (3, 5)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result[1, 2], statistic(x[1, 2], y[1, 2]))


@both
def test_shapes_must_agree(statistic):
    with pytest.raises(ValueError, match=r"same shape \[?…, n\]?, but got \(3,\) and \(4,\)"):
        statistic(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="same shape"):
        statistic(torch.tensor(1.0), torch.tensor(1.0))


@both
def test_interval_equals_scipy_bootstrap_in_distribution(statistic):
    x = torch.randn(30)
    y = x + torch.randn(30)
    low, high = bootstrap_interval(statistic, x, y, num_resamples=10_000)
    peer = scipy.stats.bootstrap(
        (x.numpy(), y.numpy()),
        lambda a, b: float(PEERS[statistic](a, b).statistic),
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert float(low) == pytest.approx(peer.low, abs=0.05)
    assert float(high) == pytest.approx(peer.high, abs=0.05)
    assert low < statistic(x, y) < high


def test_interval_equals_a_loop_over_the_same_draws():
    x, y = torch.randn(2, 9)
    low, high = bootstrap_interval(kendall_tau, x, y, level=0.8, num_resamples=50, seed=3)
    draws = torch.randint(9, (50, 9), generator=torch.Generator().manual_seed(3))
    values = np.array([expected(kendall_tau, x[draw], y[draw]) for draw in draws])
    np.testing.assert_allclose([low, high], np.nanquantile(values, [0.1, 0.9]), atol=1e-12)


def test_degenerate_resamples_are_left_out():
    """Three runs: every ninth draw is one run three times, which has no rank correlation."""
    low, high = bootstrap_interval(kendall_tau, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert (low, high) == (1.0, 1.0)


def test_interval_narrows_with_the_level_and_keeps_the_random_state():
    x, y = torch.randn(2, 20)
    state = torch.get_rng_state()
    wide, narrow = (bootstrap_interval(spearman_rho, x, y, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap_interval(spearman_rho, x, y, level=0.99) == wide
    assert bootstrap_interval(spearman_rho, x, y, level=0.99, seed=1) != wide
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_bounded_by_parts(monkeypatch):
    x, y = torch.randn(2, 15)
    whole = bootstrap_interval(kendall_tau, x, y, num_resamples=100)
    monkeypatch.setattr("lightning_fisher.functional.ranking.bootstrap.MAX_ELEMENTS", 15 * 15 * 7)
    assert bootstrap_interval(kendall_tau, x, y, num_resamples=100) == whole


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"num_resamples": 0}])
def test_bad_options_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be .*, but got {value}"):
        bootstrap_interval(kendall_tau, torch.arange(3), torch.arange(3), **options)


def test_interval_is_for_one_problem():
    with pytest.raises(ValueError, match=r"shape \[n\], but got \(2, 3\)"):
        bootstrap_interval(kendall_tau, torch.zeros(2, 3), torch.zeros(2, 3))

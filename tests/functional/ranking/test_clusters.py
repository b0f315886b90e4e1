"""Intervals of runs that share a seed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_fisher.functional.ranking import bootstrap_interval, jackknife_interval, kendall_tau, partial_kendall_tau


def runs(sizes=(2, 3, 4, 3)):
    generator = torch.Generator().manual_seed(0)
    clusters = [f"seed {i}" for i, size in enumerate(sizes) for _ in range(size)]
    x = torch.randn(len(clusters), generator=generator)
    return x, x + torch.randn(len(clusters), generator=generator), clusters


def test_equals_a_loop_over_draws_of_whole_clusters():
    x, y, clusters = runs()
    low, high = bootstrap_interval(kendall_tau, x, y, clusters=clusters, level=0.8, num_resamples=100, seed=3)
    drawn = torch.randint(4, (100, 4), generator=torch.Generator().manual_seed(3))
    members = [[i for i, c in enumerate(clusters) if c == f"seed {k}"] for k in range(4)]
    taus = []
    for row in drawn.tolist():
        index = [i for k in row for i in members[k]]
        taus.append(scipy.stats.kendalltau(x[index].numpy(), y[index].numpy()).statistic)
    np.testing.assert_allclose([low, high], np.nanquantile(taus, [0.1, 0.9]), atol=1e-12)


def test_every_run_its_own_cluster_is_the_plain_bootstrap():
    x, y, clusters = runs()
    plain = bootstrap_interval(kendall_tau, x, y)
    assert bootstrap_interval(kendall_tau, x, y, clusters=range(len(clusters))) == plain


def test_copies_of_a_run_add_nothing():
    """Four runs, each five times: the plain bootstrap takes them for twenty."""
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    clusters = torch.arange(4).repeat_interleave(5)
    few = bootstrap_interval(kendall_tau, x, y)
    clustered = bootstrap_interval(kendall_tau, x[clusters], y[clusters], clusters=clusters)
    plain = bootstrap_interval(kendall_tau, x[clusters], y[clusters])
    torch.testing.assert_close(torch.stack(clustered), torch.stack(few))
    assert plain.low > clustered.low


def test_one_cluster_has_no_interval():
    x, y, _ = runs()
    assert all(end.isnan() for end in bootstrap_interval(kendall_tau, x, y, clusters=[0] * len(x)))


def test_labels_are_one_a_run():
    x, y, _ = runs()
    with pytest.raises(ValueError, match="Expected argument `clusters` to have one value a run, 12, but got 3"):
        bootstrap_interval(kendall_tau, x, y, clusters=[0, 1, 2])


def test_jackknife_equals_a_loop_that_leaves_clusters_out():
    x, y, clusters = runs()
    kept = [[i for i, c in enumerate(clusters) if c != f"seed {k}"] for k in range(4)]
    tau = scipy.stats.kendalltau(x.numpy(), y.numpy()).statistic
    without = [scipy.stats.kendalltau(x[index].numpy(), y[index].numpy()).statistic for index in kept]
    half = scipy.stats.t.ppf(0.9, 3) * np.sqrt(3 / 4 * sum((w - np.mean(without)) ** 2 for w in without))
    interval = jackknife_interval(kendall_tau, x, y, clusters=clusters, level=0.8, bounds=(-9.0, 9.0))
    np.testing.assert_allclose(interval, [tau - half, tau + half], atol=1e-12)
    cut = jackknife_interval(kendall_tau, x, y, clusters=clusters, level=0.99, bounds=(tau - 0.01, 1.0))
    assert float(cut.low) == pytest.approx(tau - 0.01)
    assert cut.high <= 1.0


def test_jackknife_of_the_mean_is_students_interval():
    x = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife_interval(lambda x, y: x.mean(-1), x, x, bounds=(-9.0, 9.0))
    peer = scipy.stats.ttest_1samp(x.numpy(), 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(found, peer, atol=1e-12)


def test_jackknife_leaves_the_controls_of_a_cluster_out_with_it():
    x, y, clusters = runs((3, 3, 3))
    given = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    interval = jackknife_interval(partial_kendall_tau, x, y, given=given, clusters=clusters, bounds=(-9.0, 9.0))
    left = [[i for i in range(9) if i // 3 != k] for k in range(3)]
    without = [float(partial_kendall_tau(x[i], y[i], given[:, i])) for i in left]
    half = scipy.stats.t.ppf(0.975, 2) * np.sqrt(2 / 3 * sum((w - np.mean(without)) ** 2 for w in without))
    assert float(interval.high - interval.low) == pytest.approx(2 * half, abs=1e-12)


def test_jackknife_is_undefined_without_a_second_cluster_or_where_the_statistic_is():
    x, y, clusters = runs()
    assert all(end.isnan() for end in jackknife_interval(kendall_tau, x, y, clusters=[0] * len(x)))
    alike = torch.tensor([float(label == "seed 1") for label in clusters])  # constant without seed 1
    assert all(end.isnan() for end in jackknife_interval(kendall_tau, alike, y, clusters=clusters))


@pytest.mark.parametrize("options", [{"level": 1.0}, {"bounds": (1.0, 1.0)}])
def test_bad_options_of_the_jackknife_are_named(options):
    x, y, _ = runs()
    ((name, given),) = options.items()
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be .*, but got {re.escape(str(given))}"):
        jackknife_interval(kendall_tau, x, y, **options)


@pytest.mark.parametrize(("seeds", "settings"), [(3, 6), (5, 6), (10, 4)])
@pytest.mark.parametrize("effect", [0.0, 0.8, 2.0])
def test_a_few_clusters_are_enough_for_the_jackknife(seeds, settings, effect):
    """Settings and seeds with effects of their own: the mean τ of many such studies judges the intervals."""
    generator = torch.Generator().manual_seed(0)

    def studies(count):
        of_settings = torch.arange(float(settings), dtype=torch.float64).repeat(seeds)
        shape = (2, count, seeds)
        of_seeds = torch.randn(shape, generator=generator, dtype=torch.float64).repeat_interleave(settings, 2)
        noise = torch.randn(of_seeds.shape, generator=generator, dtype=torch.float64)
        return effect * of_settings + of_seeds + noise

    true = float(kendall_tau(*studies(3000)).mean())
    labels = [seed for seed in range(seeds) for _ in range(settings)]
    covered = {"jackknife": 0, "bootstrap": 0}
    for x, y in zip(*studies(150), strict=True):
        intervals = {
            "jackknife": jackknife_interval(kendall_tau, x, y, clusters=labels),
            "bootstrap": bootstrap_interval(kendall_tau, x, y, clusters=labels, num_resamples=100),
        }
        for name, interval in intervals.items():
            covered[name] += float(interval.low) <= true <= float(interval.high)
    assert covered["jackknife"] >= 0.9 * 150  # of intervals at 95 %
    assert covered["jackknife"] > covered["bootstrap"]

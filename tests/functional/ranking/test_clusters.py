"""Intervals of runs that share a seed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_fisher.functional.ranking import bootstrap_interval, kendall_tau


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


def test_a_few_clusters_cover_too_little():
    """Six settings, five seeds, both with an effect of their own: the true τ of many such runs judges the intervals."""
    generator = torch.Generator().manual_seed(0)

    def runs(seeds):
        settings = torch.arange(6.0, dtype=torch.float64).repeat(seeds)
        of_seeds = torch.randn(2, seeds, generator=generator, dtype=torch.float64).repeat_interleave(6, 1)
        noise = torch.randn(2, 6 * seeds, generator=generator, dtype=torch.float64)
        return 0.6 * settings + of_seeds[0] + noise[0], settings + of_seeds[1] + 0.5 * noise[1]

    true = float(kendall_tau(*runs(400)))
    labels = [seed for seed in range(5) for _ in range(6)]
    covered = {"seeds": 0, "runs": 0}
    for _ in range(60):
        x, y = runs(5)
        for name, clusters in (("seeds", labels), ("runs", None)):
            interval = bootstrap_interval(kendall_tau, x, y, clusters=clusters, num_resamples=200)
            covered[name] += float(interval.low) <= true <= float(interval.high)
    assert covered["seeds"] < 0.85 * 60 < covered["runs"]  # of intervals at 95 %

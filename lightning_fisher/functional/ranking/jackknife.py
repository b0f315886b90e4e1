"""Jackknife intervals of a statistic over runs, which may come in a few clusters that share a seed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lightning_fisher.functional.ranking.problem import Interval, Statistic, require_problem
from lightning_fisher.optional_packages import require_package


def jackknife_interval(
    statistic: Statistic,
    x: Tensor,
    y: Tensor,
    *,
    clusters: Sequence[Hashable] | Tensor | None = None,
    given: Tensor | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Interval:
    """Interval of a statistic of n runs from its values without one cluster at a time.

    ``θ̂ ± t_{G−1} √V`` with ``V = (G−1)/G · Σ_g (θ̂_(g) − θ̄)²`` (Tukey 1958): ``θ̂_(g)`` is the statistic without the
    runs of cluster g of G, ``θ̄`` the mean of those, ``t_{G−1}`` the quantile of Student's distribution. With clusters
    it is the estimate "CV3" of MacKinnon, Nielsen & Webb (2023), which they recommend where clusters are few.

    Runs with the same seed share their training set, its random labels or their initial weights. Over three, five and
    ten seeds, each in four to six settings, the 95 % interval of Kendall's τ covers the true one in at least nine
    tenths of simulated studies, whether settings matter or not, and more often than `bootstrap_interval` over those
    seeds. It is as wide as so few seeds make it: three say little.

    Args:
        statistic: `kendall_tau`, `spearman_rho`, or any smooth function of two ``[r, n]`` tensors that returns ``[r]``.
        x: ``[n]``, for example a metric of n runs.
        y: ``[n]``, for example their test errors.
        clusters: n labels, for example the runs' seeds; runs with equal labels are left out together. ``None``: every
            run by itself.
        given: ``[k, n]``: k control variables, passed to ``statistic`` as a third argument ``[r, k, n]``, as
            `partial_kendall_tau` takes them.
        level: Coverage, between 0 and 1.
        bounds: The statistic's range, where the interval ends.

    Returns:
        The ends. Both are ``nan`` where the statistic is undefined on the data or without one of the clusters, or
        where all runs are one cluster; equal, where the statistic is the same without each cluster, as may be with few
        runs. Costs G evaluations; nothing is random.

    Raises:
        ValueError: If the shapes differ, are not ``[n]``, or an option is outside its range.
        ImportError: Without scipy, which has Student's distribution.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import jackknife_interval, kendall_tau
        >>> measure = torch.arange(9.0)
        >>> error = torch.tensor([0.0, 2.0, 1.0, 3.0, 4.0, 5.0, 7.0, 6.0, 8.0])
        >>> low, high = jackknife_interval(kendall_tau, measure, error, clusters=[0, 1, 2] * 3)
        >>> round(float(low), 2), round(float(high), 2)
        (0.51, 1.0)
    """
    low, high = bounds
    if not low < high:
        raise ValueError(f"Expected argument `bounds` to be two numbers in ascending order, but got {bounds}.")
    problem = require_problem(statistic, x, y, clusters, given, level)
    groups = problem.labels.unique()
    count = len(groups)
    undefined = Interval(*problem.x.new_full((2,), torch.nan))
    if count < 2:
        return undefined
    estimate = problem.whole()
    without = torch.stack([problem(torch.nonzero(problem.labels != g).mT)[0] for g in groups])
    if bool(torch.isnan(without).any() | torch.isnan(estimate)):
        return undefined
    variance = (count - 1) / count * (without - without.mean()).square().sum()
    stats = require_package("scipy.stats", "jackknife_interval")
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * math.sqrt(float(variance))
    return Interval((estimate - half).clamp(low, high), (estimate + half).clamp(low, high))

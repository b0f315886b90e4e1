"""Bootstrap intervals of a statistic over runs, which may come in clusters that share a seed."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_fisher.arguments import require_integer
from lightning_fisher.functional.ranking.problem import Interval, Problem, Statistic, require_problem

MAX_ELEMENTS = 2**24  # of the pairwise comparisons held at a time


def bootstrap_interval(
    statistic: Statistic,
    x: Tensor,
    y: Tensor,
    *,
    clusters: Sequence[Hashable] | Tensor | None = None,
    given: Tensor | None = None,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic of n pairs (Efron 1979): pairs are drawn with replacement.

    Runs with the same seed share their training set, its random labels or their initial weights, so they are not
    independent. With ``clusters``, whole clusters are drawn with replacement instead of pairs, each with all its
    runs (the cluster bootstrap; Davison & Hinkley 1997). The interval is then about new seeds in the same
    settings. It needs many clusters: with fewer than about twenty it is too narrow, and of a rank correlation too
    high; `jackknife_interval` covers what it should with a few.

    Args:
        statistic: `kendall_tau`, `spearman_rho`, or any function of two ``[r, n]`` tensors that returns ``[r]``.
        x: ``[n]``, for example a metric of n runs.
        y: ``[n]``, for example their test errors.
        clusters: n labels, for example the runs' seeds; runs with equal labels are drawn together. ``None``: every
            run for itself.
        given: ``[k, n]``: k control variables, resampled with the pairs and passed to ``statistic`` as a third
            argument ``[r, k, n]``, as `partial_kendall_tau` takes them.
        level: Coverage, between 0 and 1.
        num_resamples: Draws of n pairs, or of as many clusters as there are.
        seed: Of the draws; the global random state is not touched.

    Returns:
        The ``(1 ∓ level)/2`` quantiles over the resamples. Resamples in which the statistic is undefined (with
        few runs one may draw a constant) are left out; both ends are ``nan`` where it is undefined on the data, or
        where all runs are one cluster.

    Raises:
        ValueError: If the shapes differ, are not ``[n]``, or an option is outside its range.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import bootstrap_interval, kendall_tau
        >>> x = torch.arange(8.0)
        >>> bootstrap_interval(kendall_tau, x, x)
        Interval(low=tensor(1., dtype=torch.float64), high=tensor(1., dtype=torch.float64))
        >>> interval = bootstrap_interval(kendall_tau, x, x.flip(0), clusters=[0, 0, 1, 1, 2, 2, 3, 3])
        >>> float(interval.high)
        -1.0
    """
    require_integer("num_resamples", num_resamples, 1)
    problem = require_problem(statistic, x, y, clusters, given, level)
    one_cluster = clusters is not None and len(problem.labels.unique()) < 2
    if one_cluster or bool(torch.isnan(problem.whole())):
        return Interval(*problem.x.new_full((2,), torch.nan))
    values = torch.cat([problem(draws) for draws in _resamples(problem, num_resamples, seed)])
    ends = values.new_tensor([(1 - level) / 2, (1 + level) / 2])
    return Interval(*torch.nanquantile(values, ends))


def _resamples(problem: Problem, num_resamples: int, seed: int) -> Iterator[Tensor]:
    """Draws of whole clusters as indices ``[r, n′]``; resamples of equal length n′ come together."""
    members = problem.members()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(members), (num_resamples, len(members)), generator=generator)
    sizes = torch.tensor([len(member) for member in members])[drawn].sum(1)
    for size in sizes.unique():
        draws = torch.stack([torch.cat([members[i] for i in row]) for row in drawn[sizes == size].tolist()])
        yield from draws.split(max(1, MAX_ELEMENTS // int(size) ** 2))

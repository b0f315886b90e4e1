"""The interval of a rank correlation over networks, some of which share a seed: one rule for all reports."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from lightning_fisher.functional.ranking import bootstrap_interval, jackknife_interval
from lightning_fisher.functional.ranking.problem import Interval, Statistic

LEVEL = 0.95
LEAST_SEEDS = 3  # two leave Student's distribution one degree of freedom, a quantile of 12.7
RESAMPLES = 500  # of the bootstrap over networks, where seeds are fewer


def rank_interval(
    statistic: Statistic, x: Tensor, y: Tensor, seeds: Sequence[Hashable], given: Tensor | None = None
) -> Interval:
    """The 95 % interval: the jackknife over seeds; with fewer than `LEAST_SEEDS` the bootstrap over networks.

    Args:
        statistic: of ``x`` and ``y``, and of ``given`` where it is there.
        x: ``[n]``, a measure.
        y: ``[n]``, what it should order.
        seeds: n, of the networks.
        given: ``[k, n]`` controls.
    """
    if len(set(seeds)) >= LEAST_SEEDS:
        return jackknife_interval(statistic, x, y, clusters=seeds, given=given, level=LEVEL)
    return bootstrap_interval(statistic, x, y, given=given, level=LEVEL, num_resamples=RESAMPLES)


def said(seeds: Sequence[int]) -> str:
    """What the intervals in a report are, in a sentence.

    Args:
        seeds: how many there are, of each study in it.
    """
    if min(seeds) >= LEAST_SEEDS:
        return "Intervals, 95 %, are the jackknife's over seeds."
    if max(seeds) >= LEAST_SEEDS:
        return (
            "Intervals, 95 %, are the jackknife's over seeds "
            f"(with fewer than {LEAST_SEEDS} the bootstrap's over networks)."
        )
    return f"Intervals, 95 %, are the bootstrap's over networks: there are fewer than {LEAST_SEEDS} seeds."

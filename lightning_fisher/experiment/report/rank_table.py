"""How well each metric orders the runs by their test error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from lightning_fisher.experiment.records.quantities import HESSIAN_METRICS, MEASURES, METRICS, QUANTITIES
from lightning_fisher.experiment.report.rank_interval import LEVEL, rank_interval
from lightning_fisher.experiment.report.rows import Row, value
from lightning_fisher.experiment.report.tables import interval_cell, markdown
from lightning_fisher.functional.ranking import kendall_tau, spearman_rho

LEAST = 6  # runs: of fewer, a rank correlation takes a handful of values, and its interval may be a point
BASELINES = ("train_loss", "epochs")  # and the parameter norm, one of the measures
RANKED = (*METRICS, *HESSIAN_METRICS, *MEASURES, *BASELINES)


class Correlation(NamedTuple):
    """A rank correlation with its interval, over n runs."""

    name: str
    statistic: float
    low: float
    high: float
    n: int


def correlations(rows: Sequence[Row], metric: str, against: str = "test_error") -> list[Correlation]:
    """Kendall's tau-b and Spearman's rho of a metric with the test error over runs.

    A metric of which higher values are better is turned, so that 1 is the right order for all.

    Args:
        rows: the runs; those that lack either value are left out.
        metric: name of the metric.
        against: what it should order.

    Returns:
        Both, each with its `rank_interval`; empty with fewer than `LEAST` runs.
    """
    have = [row for row in rows if value(row, metric) is not None and value(row, against) is not None]
    if len(have) < LEAST:
        return []
    x, y = (torch.tensor([value(row, key) for row in have], dtype=torch.float64) for key in (metric, against))
    seeds = [row["seed"] for row in have]
    x = -x if QUANTITIES[metric].lower_is_better is False else x
    found = []
    for name, statistic in (("Kendall τ", kendall_tau), ("Spearman ρ", spearman_rho)):
        interval = rank_interval(statistic, x, y, seeds)
        found.append(Correlation(name, float(statistic(x, y)), float(interval.low), float(interval.high), len(have)))
    return found


def all_correlations(rows: Sequence[Row]) -> dict[str, list[Correlation]]:
    """The rank correlations of all measured metrics with the test error, the largest τ first.

    Those of too few runs are left out.
    """
    found = {key: both for key in RANKED if (both := correlations(rows, key))}
    return dict(sorted(found.items(), key=lambda one: -_or_least(one[1][0].statistic)))


def _or_least(statistic: float) -> float:
    """One of equal values, nan, after all others."""
    return statistic if statistic == statistic else -2.0


def ranking_table(found: Mapping[str, Sequence[Correlation]]) -> str:
    """Tabulate the rank correlations of metrics with the test error.

    Args:
        found: as `all_correlations` gives them.
    """
    lines = []
    for key, both in found.items():
        cells = [interval_cell(one.statistic, one.low, one.high) for one in both]
        lines.append([QUANTITIES[key].name, *cells, str(both[0].n)])
    percent = f"{100 * LEVEL:.0f} %"
    return markdown(["metric", f"Kendall τ [{percent}]", f"Spearman ρ [{percent}]", "runs"], lines)

"""Several scenarios beside each other: which measure orders the networks of each of them, and the worst case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.report.rank_interval import said
from lightning_fisher.experiment.report.rows import Row
from lightning_fisher.experiment.report.tables import MISSING, interval_cell, markdown, number_cell
from lightning_fisher.experiment.report.zoo.judgment import (
    MATTERS,
    VARIED,
    Effect,
    Judged,
    effects,
    judge_all,
    measure_name,
    that_fit,
    varied_options,
)


@dataclass(frozen=True)
class Scenario:
    """The networks of one study, in which one option varies.

    Attributes:
        name: What varies.
        count: Networks.
        fitted: Those that fit their training images, which are judged.
        seeds: How many those have.
        effect: What the option does to the test error.
        judged: By measure.
    """

    name: str
    count: int
    fitted: int
    seeds: int
    effect: Effect
    judged: dict[str, Judged]


def scenarios_of(rows: Sequence[Row]) -> list[Scenario]:
    """The scenarios among the rows, by the studies that they belong to.

    Raises:
        ConfigError: If there are fewer than two, or one has too few networks that fit.
    """
    studies: dict[str, list[Row]] = {}
    for row in rows:
        studies.setdefault((row.get("study") or {}).get("name") or "", []).append(row)
    if len(studies) < 2:
        raise ConfigError(
            f"Expected the rows of at least two studies for `--as scenarios`, but got {', '.join(studies) or 'none'}."
        )
    return [_scenario(name, members) for name, members in studies.items()]


def _scenario(name: str, rows: Sequence[Row]) -> Scenario:
    fitted = that_fit(rows)
    options = varied_options(fitted)
    if len(fitted) < 3 or len(options) != 1:
        raise ConfigError(
            "Expected at least three networks that fit, and one option that varies, in every study of "
            f"`--as scenarios`, but {name or 'one'} has {len(fitted)} and {len(options)}."
        )
    judged = {one.key: one for one in judge_all(fitted, options)}
    seeds = len({row["seed"] for row in fitted})
    return Scenario(VARIED[options[0]], len(rows), len(fitted), seeds, effects(fitted, options)[0], judged)


def worst(found: Sequence[Scenario], key: str) -> float:
    """The smallest τ of a measure over the scenarios; nan where it is missing in one."""
    taus = [one.judged[key].tau if key in one.judged else math.nan for one in found]
    return math.nan if any(map(math.isnan, taus)) else min(taus)


def by_worst(found: Sequence[Scenario]) -> list[str]:
    """The measures, the best worst case first; those that are missing in a scenario last."""
    keys = list(dict.fromkeys(key for one in found for key in one.judged))
    return sorted(keys, key=lambda key: -2.0 if math.isnan(worst(found, key)) else worst(found, key), reverse=True)


def scenarios_parts(found: Sequence[Scenario]) -> list[tuple[str, str]]:
    """Headings and tables: the networks, τ of every measure, and τ given the baselines."""
    return [
        ("Networks", networks_table(found)),
        ("Kendall τ with the test error", tau_table(found)),
        (
            "τ given the baselines: training loss, epochs, parameter norm, as far as the rows have them",
            partial_table(found),
        ),
    ]


def networks_table(found: Sequence[Scenario]) -> str:
    """How many networks fit, and what the option does to the test error."""
    lines = [
        [
            one.name,
            str(one.count),
            str(one.fitted),
            str(one.seeds),
            f"{one.effect.points:.2f}",
            f"{one.effect.spread:.2f}",
            f"{one.effect.ratio:.1f}",
        ]
        for one in found
    ]
    headings = ["varies", "networks", "that fit", "seeds", "moves the test error by (points)", "spread over seeds"]
    return markdown([*headings, f"times (≥ {MATTERS:g} orders)"], lines)


def tau_table(found: Sequence[Scenario]) -> str:
    """τ of every measure in every scenario, with its interval, and the worst."""
    lines = []
    for key in by_worst(found):
        judged = [one.judged.get(key) for one in found]
        cells = [MISSING if j is None else interval_cell(j.tau, j.low, j.high) for j in judged]
        lines.append([measure_name(key), *cells, number_cell(worst(found, key))])
    return (
        f"{markdown(['measure', *(f'{one.name}, n = {one.fitted}' for one in found), 'worst'], lines)}\n\n"
        f"Networks that fit; measures that say higher is better are turned. {said([one.seeds for one in found])} "
        "(b): a baseline that says nothing about a minimum."
    )


def partial_table(found: Sequence[Scenario]) -> str:
    """The same, given the baselines."""
    lines = []
    for key in by_worst(found):
        judged = [one.judged.get(key) for one in found]
        cells = [MISSING if j is None else interval_cell(j.partial, j.partial_low, j.partial_high) for j in judged]
        lines.append([measure_name(key), *cells])
    return markdown(["measure", *(one.name for one in found)], lines)

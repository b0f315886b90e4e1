"""How well measures order networks that differ in several options: every protocol, for every measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch
from torch import Tensor

from lightning_fisher.arguments import is_number
from lightning_fisher.experiment.records.quantities import HESSIAN_METRICS, MEASURES, METRICS, QUANTITIES
from lightning_fisher.experiment.report.rank_interval import LEAST_SEEDS, rank_interval
from lightning_fisher.experiment.report.rows import Row, grouped, value
from lightning_fisher.functional.ranking import (
    granulated_kendall,
    jackknife_interval,
    kendall_tau,
    partial_kendall_tau,
    robust_sign_error,
)

VARIED = {
    "data.confusion_size": "random labels",
    "data.label_noise": "wrong labels",
    "data.augmentation": "augmentation",
    "model.batch_size": "batch size",
    "model.net.width": "width",
    "model.net.depth": "depth",
    "optimizer": "optimizer",
    "model.optimizer.weight_decay": "weight decay",
    "reg": "regularizer",
}
BASELINES = ("train_loss", "epochs", "parameter_norm")  # which say nothing about a minimum
JUDGED = (*METRICS, *HESSIAN_METRICS, *MEASURES, *BASELINES[:2])
AGAINST = "test_error"
FIT = 1.0  # per cent: networks with a larger training error are another question
MATTERS = 3.0  # times the spread over seeds that an option moves the test error


@dataclass(frozen=True)
class Effect:
    """What one option does to the test error.

    Attributes:
        option: its key.
        settings: pairs of settings that differ in it alone.
        points: mean difference of the mean test errors of those pairs, largest minus smallest, in points.
        spread: standard deviation over the seeds of a setting, pooled, in points.
    """

    option: str
    settings: int
    points: float
    spread: float

    @property
    def ratio(self) -> float:
        """By how many spreads it moves the test error."""
        return self.points / self.spread if self.spread > 0 else math.nan

    @property
    def matters(self) -> bool:
        """Whether there is something to order."""
        return self.ratio >= MATTERS


@dataclass(frozen=True)
class Judged:
    """How well one measure orders the networks; values turned so that larger should mean a larger test error.

    Attributes:
        key: of the measure.
        n: networks that have it.
        tau: Kendall's τ-b over all networks.
        low: lower end of its 95 % interval.
        high: upper end.
        psi: granulated coefficient Ψ, the mean of ``per_option``.
        per_option: ψ of networks that differ in one option alone.
        per_option_ends: ends of the intervals of those, nan with fewer than `LEAST_SEEDS` seeds.
        sign_error: mean over pairs of settings that differ in one option; 0.5 is a coin.
        worst_sign_error: of the worst pair of settings.
        partial: τ given training loss, epochs and parameter norm.
        partial_low: lower end of its interval.
        partial_high: upper end.
        seconds: that it took for a subset of a network, on average; None where it was not timed.
    """

    key: str
    n: int
    tau: float
    low: float
    high: float
    psi: float
    per_option: dict[str, float]
    per_option_ends: dict[str, tuple[float, float]]
    sign_error: float
    worst_sign_error: float
    partial: float
    partial_low: float
    partial_high: float
    seconds: float | None

    def worst(self, options: Sequence[str]) -> float:
        """The smallest ψ among some options; nan without any."""
        option = self.worst_option(options)
        return math.nan if option is None else self.per_option[option]

    def worst_option(self, options: Sequence[str]) -> str | None:
        """The one with the smallest ψ; None without any."""
        there = [option for option in options if not math.isnan(self.per_option.get(option, math.nan))]
        return min(there, key=self.per_option.__getitem__, default=None)


def measure_label(key: str) -> str:
    """The name of a measure in tables; of one that was entered, its key."""
    return QUANTITIES[key].name if key in QUANTITIES else key


def measure_name(key: str, mark: str = "b") -> str:
    """The label, with a mark for a baseline."""
    return measure_label(key) + (f" ({mark})" if key in BASELINES else "")


def that_fit(rows: Sequence[Row]) -> list[Row]:
    """The networks that fit their training images."""
    return [row for row in rows if row["train_error"] <= FIT]


def varied_options(rows: Sequence[Row]) -> list[str]:
    """The options of `VARIED` that do."""
    return [option for option in VARIED if len({repr(value(row, option)) for row in rows}) > 1]


def effects(rows: Sequence[Row], options: Sequence[str]) -> list[Effect]:
    """What every option does, over the settings that differ in it alone."""
    settings = grouped(rows, options)
    within = [value for members in settings.values() for value in _centered(members)]
    degrees = len(rows) - len(settings)
    spread = math.sqrt(sum(v * v for v in within) / degrees) if degrees > 0 else math.nan
    found = []
    for place, option in enumerate(options):
        alike: dict[tuple[object, ...], list[float]] = {}
        for setting, members in settings.items():
            rest = (*map(repr, setting[:place]), *map(repr, setting[place + 1 :]))
            alike.setdefault(rest, []).append(fmean(row[AGAINST] for row in members))
        ranges = [max(means) - min(means) for means in alike.values() if len(means) > 1]
        pairs = sum(len(means) * (len(means) - 1) // 2 for means in alike.values())
        found.append(Effect(option, pairs, fmean(ranges) if ranges else math.nan, spread))
    return found


def _centered(members: Sequence[Row]) -> list[float]:
    errors = [row[AGAINST] for row in members]
    return [error - fmean(errors) for error in errors] if len(errors) > 1 else []


def judge(
    rows: Sequence[Row], key: str, options: Sequence[str], *, higher_is_better: bool | None = None
) -> Judged | None:
    """Judge one measure; None where fewer than three networks have it, or it is the same for all.

    Args:
        rows: the networks.
        key: of the measure.
        options: those that vary.
        higher_is_better: which way the measure points; None: as its quantity says.
    """
    if higher_is_better is None:
        higher_is_better = QUANTITIES[key].lower_is_better is False
    has = [row for row in rows if _number(row, key) is not None]
    if len(has) < 3 or len({_number(row, key) for row in has}) < 2:
        return None
    sign = -1.0 if higher_is_better else 1.0
    x, y = sign * _column(has, key), _column(has, AGAINST)
    seeds = [row["seed"] for row in has]
    interval = rank_interval(kendall_tau, x, y, seeds)
    given = _controls(has, key)
    partial = partial_low = partial_high = math.nan
    if given is not None:
        partial = float(partial_kendall_tau(x, y, given))
        found = rank_interval(partial_kendall_tau, x, y, seeds, given)
        partial_low, partial_high = float(found.low), float(found.high)
    named: Mapping[str, list[str]] = {option: [repr(value(row, option)) for row in has] for option in options}
    granulated = granulated_kendall(x, y, named)
    errors = robust_sign_error(x, y, named, min_ess=1).overall
    return Judged(
        key, len(has), float(kendall_tau(x, y)), float(interval.low), float(interval.high), float(granulated.value),
        {option: float(psi) for option, psi in granulated.per_option.items()}, _psi_ends(x, y, named, seeds),
        float(errors.mean), float(errors.worst), partial, partial_low, partial_high, _seconds(has, key),
    )  # fmt: skip


def _psi_ends(
    x: Tensor, y: Tensor, named: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """Ends of the intervals of ψ, an option each: the jackknife's over seeds, as for τ."""
    if len(set(seeds)) < LEAST_SEEDS:
        return dict.fromkeys(named, (math.nan, math.nan))

    @cache
    def of(places: tuple[int, ...]) -> dict[str, Tensor]:
        taken = list(places)
        return granulated_kendall(x[taken], y[taken], {o: [v[i] for i in taken] for o, v in named.items()}).per_option

    places = torch.arange(len(x), dtype=torch.float64)
    found = {}
    for option in named:

        def psi(which: Tensor, _: Tensor, option: str = option) -> Tensor:
            return torch.stack([of(tuple(map(int, one)))[option] for one in which])

        ends = jackknife_interval(psi, places, y, clusters=seeds)
        found[option] = (float(ends.low), float(ends.high))
    return found


def judge_all(rows: Sequence[Row], options: Sequence[str]) -> list[Judged]:
    """Every measure that the rows have, the best worst case first."""
    found = [judged for key in JUDGED if (judged := judge(rows, key, options)) is not None]
    return sorted_by_worst(found, effects(rows, options))


def sorted_by_worst(done: Sequence[Judged], found: Sequence[Effect]) -> list[Judged]:
    """Judgments, the best worst case over the options that matter first (over all where none does), then by Ψ."""
    decisive = [effect.option for effect in found if effect.matters] or [effect.option for effect in found]
    return sorted(done, key=lambda judged: (-_or_last(judged.worst(decisive)), -_or_last(judged.psi)))


def _or_last(number: float) -> float:
    return -2.0 if math.isnan(number) else number


def _number(row: Row, key: str) -> float | None:
    found = value(row, key)
    return float(found) if is_number(found) and math.isfinite(found) else None


def _column(rows: Sequence[Row], key: str) -> Tensor:
    return torch.tensor([_number(row, key) for row in rows], dtype=torch.float64)


def _controls(rows: Sequence[Row], key: str) -> Tensor | None:
    """The baselines that all networks have, but for the measure itself."""
    names = [name for name in BASELINES if name != key and all(_number(row, name) is not None for row in rows)]
    return torch.stack([_column(rows, name) for name in names]) if names else None


def _seconds(rows: Sequence[Row], key: str) -> float | None:
    """Of a subset: a row may have some measures on fewer subsets than others."""
    times = [row["measure_seconds"][key] / _subsets(row, key) for row in rows if key in row.get("measure_seconds", {})]
    return fmean(times) if times else None


def _subsets(row: Row, key: str) -> int:
    """How many subsets a measure was computed on: those of the run, or of what added it later."""
    later = [added["subsets"] for added in row.get("measured_later", []) if key in added["measures"]]
    return later[-1] if later else int(row["config"]["metric.num_subsets"])

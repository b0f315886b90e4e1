"""The rows of a study, and what the pages say of them: means, paired differences, rank correlations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from judgments import Scenarios, Zoo
from words import formed, hundredths, signed, signed_table, with_interval

from lightning_fisher.experiment.records.curve import read_history
from lightning_fisher.experiment.records.result import require_rows
from lightning_fisher.experiment.report.comparison.table import methods_table, of_kind
from lightning_fisher.experiment.report.paired_difference import Difference, mean_difference
from lightning_fisher.experiment.report.rank_interval import rank_interval
from lightning_fisher.experiment.report.rows import Row, load_rows, numbers, value
from lightning_fisher.experiment.report.tables import MISSING, interval_cell, markdown, number_cell
from lightning_fisher.experiment.report.zoo.judgment import Judged, judge_all, measure_name, that_fit, varied_options
from lightning_fisher.functional.ranking import kendall_tau

RESULTS = Path(__file__).resolve().parent
FIT = 0.0  # the training error, in per cent, of a network that counts as one that fits


class Study:
    """The rows of a folder, or those of them that have certain values.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        if not self.rows:
            raise ValueError("Expected argument `rows` to hold at least one row, but got none.")

    def __call__(self, **wanted: Any) -> Study:
        """The rows with these values; ``reg__beta=10`` is the option ``reg.beta``."""
        keys = {key.replace("__", "."): want for key, want in wanted.items()}
        return Study([row for row in self.rows if all(value(row, key) == want for key, want in keys.items())])

    @property
    def fitting(self) -> Study:
        """Those that fit their training set."""
        return Study([row for row in self.rows if row["train_error"] <= FIT])

    @property
    def settled(self) -> Study:
        """Those that the judge of a zoo takes: with a training error of at most one per cent."""
        return Study(that_fit(self.rows))

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """What the judge says of every measure over all rows, whether the networks fit or not."""
        return {one.key: one for one in judge_all(self.rows, varied_options(self.rows))}

    @property
    def measures(self) -> str:
        """Every measure over the networks that fit, and over all."""
        fitted = self.settled.judged
        lines = [
            [
                measure_name(one.key),
                number_cell(fitted[one.key].tau),
                interval_cell(one.tau, one.low, one.high),
                number_cell(one.partial),
                MISSING if one.seconds is None else f"{one.seconds:.2g}",
            ]
            for one in self.judged.values()
        ]
        headings = ["measure", f"τ, the {self.settled.n} that fit", f"τ, all {self.n}", "partial τ, all", "s"]
        return signed_table(markdown(headings, lines))

    def judged_tau(self, key: str) -> str:
        """τ of a measure over all rows, with its interval; measures that say higher is better are turned."""
        return with_interval(self.judged[key])

    def partial(self, key: str) -> str:
        """Its partial τ, given training loss, epochs and parameter norm."""
        return hundredths(self.judged[key].partial)

    def only_tau(self, key: str) -> str:
        """Its τ, where seeds are too few for an interval."""
        return hundredths(self.judged[key].tau)

    def kind(self, kind: str) -> Study:
        """Of a comparison of methods: the trials (``choose``), or the seeds at equal ``epochs`` or ``evaluations``."""
        return Study(of_kind(self.rows, kind))

    def variation(self, name: str) -> Study:
        """Of a zoo: the networks of a variation."""
        return Study([row for row in self.rows if f"variation={name}" in row["overrides"]])

    @property
    def methods(self) -> str:
        """The tables of a comparison of methods, as its report has them."""
        return signed_table(methods_table(self.rows))

    @cached_property
    def zoo(self) -> Zoo:
        """What the judge of a zoo says."""
        return Zoo(self.rows)

    @cached_property
    def scenarios(self) -> Scenarios:
        """What the judge says of several scenarios beside each other."""
        return Scenarios(self.rows)

    @property
    def n(self) -> int:
        """How many."""
        return len(self.rows)

    @property
    def seeds(self) -> int:
        """How many seeds."""
        return len({row["seed"] for row in self.rows})

    @property
    def modified(self) -> int:
        """How many were made by a tree that differed from its commit."""
        return sum(bool(row["modified"]) for row in self.rows)

    def values(self, key: str) -> list[float]:
        """A quantity of all rows."""
        return numbers(self.rows, key)

    def mean(self, key: str, form: str = "{:.2f}") -> str:
        """Mean ± sample standard deviation."""
        found = self.values(key)
        spread = f" ± {form.format(statistics.stdev(found))}" if len(found) > 1 else ""
        return signed(form.format(statistics.fmean(found))) + spread

    def only_mean(self, key: str, form: str = "{:.2f}") -> str:
        """The mean."""
        return signed(form.format(statistics.fmean(self.values(key))))

    def least(self, key: str, over: str) -> Any:
        """The value of an option for which the mean of a quantity is least."""
        found: dict[Any, list[float]] = {}
        for row in self.rows:
            found.setdefault(value(row, over), []).append(value(row, key))
        return min(found, key=lambda one: statistics.fmean(found[one]))

    def range(self, key: str, form: str = "{:.2f}") -> str:
        """Least to largest."""
        found = self.values(key)
        low, high = (signed(form.format(end)) for end in (min(found), max(found)))
        return low if low == high else f"{low} to {high}"

    def tau(self, key: str, against: str = "test_error") -> str:
        """Kendall's τ with the test error and its 95 % interval."""
        x, y = (torch.tensor([value(row, one) for row in self.rows], dtype=torch.float64) for one in (key, against))
        interval = rank_interval(kendall_tau, x, y, [row["seed"] for row in self.rows])
        return f"{hundredths(kendall_tau(x, y))} [{hundredths(interval.low)}, {hundredths(interval.high)}]"

    def less(self, other: Study, key: str) -> Difference:
        """Paired differences to another study's rows of the same seeds."""
        theirs = {row["seed"]: value(row, key) for row in other.rows}
        return mean_difference([value(row, key) - theirs[row["seed"]] for row in self.rows if row["seed"] in theirs])

    def difference(self, other: Study, key: str, form: str = "{:+.2f}") -> str:
        """The mean of the paired differences and its 95 % interval."""
        found = self.less(other, key)
        return f"{formed(found.mean, form)} [{formed(found.low, form)}, {formed(found.high, form)}]"

    def only_difference(self, other: Study, key: str, form: str = "{:+.2f}") -> str:
        """The mean of the paired differences, for too few pairs for an interval."""
        return formed(self.less(other, key).mean, form)

    def least_and_most(self, other: Study, key: str, form: str = "{:.2f}") -> str:
        """By how much it is lower: the least and the largest of the pairs."""
        theirs = {row["seed"]: value(row, key) for row in other.rows}
        gains = [theirs[row["seed"]] - value(row, key) for row in self.rows]
        return f"{formed(min(gains), form)} to {formed(max(gains), form)}"

    def times(self, key: str, of: str, form: str = "{:.1f}") -> str:
        """How many times one quantity another is, in the same run: the median over the runs."""
        return form.format(statistics.median(value(row, key) / value(row, of) for row in self.rows))

    def distance(self, other: Study, key: str, form: str = "{:.2f}") -> str:
        """The mean distance of the pairs."""
        theirs = {row["seed"]: value(row, key) for row in other.rows}
        return form.format(statistics.fmean(abs(value(row, key) - theirs[row["seed"]]) for row in self.rows))

    def same(self, other: Study, key: str) -> str:
        """In how many pairs it is the same to the last digit."""
        theirs = {row["seed"]: value(row, key) for row in other.rows}
        equal = [value(row, key) == theirs[row["seed"]] for row in self.rows]
        return f"{sum(equal)} of {len(equal)}"

    def lower(self, other: Study, key: str) -> str:
        """In how many pairs it is lower."""
        found = self.less(other, key)
        return f"{found.lower} of {found.n}"


@cache
def study(name: str) -> Study:
    """All rows of ``results/NAME``."""
    return Study(load_rows(RESULTS / name))


def histories(name: str, **wanted: Any) -> list[list[dict[str, float]]]:
    """The epochs of the runs of ``results/NAME`` with these values."""
    pairs = require_rows(RESULTS / name)
    rows = Study([row for _, row in pairs])(**wanted).rows
    return [read_history(run) for run, row in pairs if any(row is one for one in rows)]


def history(name: str, **wanted: Any) -> list[dict[str, float]]:
    """The epochs of the one run of ``results/NAME`` with these values."""
    (found,) = histories(name, **wanted)
    return found


def best_epochs(name: str, key: str, form: str = "{:.1f}", **wanted: Any) -> str:
    """The least value of a quantity over the epochs of a run: the mean over the runs with these values."""
    return form.format(statistics.fmean(min(epoch[key] for epoch in run) for run in histories(name, **wanted)))

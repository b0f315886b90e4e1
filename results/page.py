"""The numbers of the pages of results, computed from the rows.

``python results/page.py`` writes ``docs/results.md`` and the pages beside it from Jinja templates, ``results/*.md.j2``,
whose numbers are calls of the functions below; ``results/README.md`` and README's table of measured claims likewise.
A test fails where one of them isn't what the rows give.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
import torch

from lightning_fisher.experiment.records.curve import read_history
from lightning_fisher.experiment.records.result import require_rows
from lightning_fisher.experiment.report.comparison.table import methods_table, of_kind
from lightning_fisher.experiment.report.paired_difference import Difference, mean_difference
from lightning_fisher.experiment.report.rank_interval import rank_interval
from lightning_fisher.experiment.report.rows import Row, load_rows, numbers, value
from lightning_fisher.experiment.report.tables import MISSING, interval_cell, markdown, number_cell
from lightning_fisher.experiment.report.zoo.judgment import (
    Effect,
    Judged,
    judge_all,
    measure_name,
    that_fit,
    varied_options,
)
from lightning_fisher.experiment.report.zoo.page import parts
from lightning_fisher.experiment.report.zoo.scenarios import Scenario, by_worst, scenarios_of, scenarios_parts, worst
from lightning_fisher.functional.ranking import kendall_tau

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
PAGES = {  # templates and the pages that they fill
    RESULTS / f"{template}.md.j2": DOCS / f"{page}.md"
    for template, page in {
        "results": "results",
        "random_labels": "results-random-labels",
        "scenarios": "results-scenarios",
        "batch_augmentation": "results-batch-augmentation",
        "wrong_labels": "results-wrong-labels",
        "gamma": "results-gamma",
        "steps": "results-steps",
        "differences": "results-differences",
        "machines": "results-machines",
        "methods": "methods-compared",
        "zoo": "zoo-results",
    }.items()
}
TABLE, README = RESULTS / "readme.md.j2", ROOT / "README.md"
FOLDERS, INDEX = RESULTS / "folders.md.j2", RESULTS / "README.md"
MARKS = ("<!-- measured: python results/page.py -->\n", "<!-- end of measured -->")  # around what is measured in README
NEXT = "<!-- next block -->\n"  # in the template, between two such places
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
        return _tau(self.judged[key])

    def partial(self, key: str) -> str:
        """Its partial τ, given training loss, epochs and parameter norm."""
        return _signed(self.judged[key].partial)

    def only_tau(self, key: str) -> str:
        """Its τ, where seeds are too few for an interval."""
        return _signed(self.judged[key].tau)

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
        return f"{_signed(kendall_tau(x, y))} [{_signed(interval.low)}, {_signed(interval.high)}]"

    def less(self, other: Study, key: str) -> Difference:
        """Paired differences to another study's rows of the same seeds."""
        theirs = {row["seed"]: value(row, key) for row in other.rows}
        return mean_difference([value(row, key) - theirs[row["seed"]] for row in self.rows if row["seed"] in theirs])

    def difference(self, other: Study, key: str, form: str = "{:+.2f}") -> str:
        """The mean of the paired differences and its 95 % interval."""
        found = self.less(other, key)
        return f"{_form(found.mean, form)} [{_form(found.low, form)}, {_form(found.high, form)}]"

    def only_difference(self, other: Study, key: str, form: str = "{:+.2f}") -> str:
        """The mean of the paired differences, for too few pairs for an interval."""
        return _form(self.less(other, key).mean, form)

    def least_and_most(self, other: Study, key: str, form: str = "{:.2f}") -> str:
        """By how much it is lower: the least and the largest of the pairs."""
        theirs = {row["seed"]: value(row, key) for row in other.rows}
        gains = [theirs[row["seed"]] - value(row, key) for row in self.rows]
        return f"{_form(min(gains), form)} to {_form(max(gains), form)}"

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


class Zoo:
    """The judgments of a zoo's measures, and its tables.

    Args:
        rows: of all networks.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        tables, self.judged, self.effects = parts(rows)
        self.tables = {heading: signed_table(text) for heading, text in tables}

    def __getitem__(self, heading: str) -> str:
        return self.tables[heading]

    def n(self, key: str) -> int:
        """How many networks have a measure."""
        return self._of(key).n

    def psi(self, key: str, option: str | None = None) -> str:
        """Ψ of a measure, or ψ over one option."""
        one = self._of(key)
        return _signed(one.psi if option is None else one.per_option[option])

    def perfect(self, option: str) -> int:
        """How many measures order the networks that differ in an option alone without a mistake."""
        return sum(round(one.per_option[option], 2) == 1.0 for one in self.judged)

    @property
    def matter(self) -> list[str]:
        """The options that move the test error enough for networks to be ordered."""
        return [effect.option for effect in self.effects if effect.matters]

    @property
    def right(self) -> list[str]:
        """The measures that point the right way over every option that matters, the best worst case first."""
        return [one.key for one in self.judged if one.worst(self.matter) > 0]

    def right_over(self, option: str) -> list[str]:
        """The measures that point the right way over an option."""
        return [one.key for one in self.judged if one.per_option[option] > 0]

    @property
    def seen(self) -> list[str]:
        """Those of them that are seen to, by their intervals."""
        return [one.key for one in self.judged if all(one.per_option_ends[name][0] > 0 for name in self.matter)]

    def names(self, keys: Sequence[str]) -> str:
        """The names of measures."""
        return ", ".join(measure_name(key) for key in keys) if keys else "none"

    def psi_ends(self, key: str, option: str) -> str:
        """ψ of a measure over one option, with its interval."""
        one = self._of(key)
        low, high = one.per_option_ends[option]
        return f"{_signed(one.per_option[option])} [{_signed(low)}, {_signed(high)}]"

    def effect(self, option: str) -> Effect:
        """What an option does."""
        return next(one for one in self.effects if one.option == option)

    def seconds(self, key: str) -> str:
        """Seconds of a measure for a network."""
        return f"{self._of(key).seconds:.2g}"

    def tau(self, key: str) -> str:
        """τ of a measure over all networks, with its interval."""
        return _tau(self._of(key))

    def _of(self, key: str) -> Judged:
        return next(one for one in self.judged if one.key == key)


class Scenarios:
    """The judgments of several scenarios, and their tables.

    Args:
        rows: of the networks of all of them.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.found = scenarios_of(rows)
        self.tables = {heading: signed_table(text) for heading, text in scenarios_parts(self.found)}

    def __getitem__(self, heading: str) -> str:
        return self.tables[heading]

    @property
    def judged(self) -> int:
        """How many measures were judged in every scenario."""
        return len(self.at_least(-1.0))

    def of(self, name: str) -> Scenario:
        """The scenario in which this varies."""
        return next(one for one in self.found if one.name == name)

    def tau(self, name: str, key: str) -> str:
        """τ of a measure in a scenario, with its interval."""
        return _tau(self.of(name).judged[key])

    def worst(self, key: str) -> str:
        """The smallest τ of a measure."""
        return _signed(worst(self.found, key))

    def at_least(self, tau: float) -> list[str]:
        """The measures with this τ in every scenario, the best worst case first."""
        return [key for key in by_worst(self.found) if worst(self.found, key) >= tau]


def signed_table(text: str) -> str:
    """A typographic minus in front of the numbers of a table; its rules stay."""
    return re.sub(r"(?<![\w−|-])-(?=\d)", "−", text)


def signed(text: str) -> str:
    """A typographic minus."""
    return text.replace("-", "−")


def _tau(one: Judged) -> str:
    """τ of a measure with its interval."""
    return f"{_signed(one.tau)} [{_signed(one.low)}, {_signed(one.high)}]"


def _form(number: float, form: str) -> str:
    text = form.format(number)
    return signed("−0.00" if float(text) == 0 and number < 0 and "." in text else text)


def _signed(number: Any) -> str:
    return signed(f"{float(number):.2f}")


@cache
def study(name: str) -> Study:
    """All rows of ``results/NAME``."""
    return Study(load_rows(RESULTS / name))


def history(name: str, **wanted: Any) -> list[dict[str, float]]:
    """The epochs of the one run of ``results/NAME`` with these values."""
    pairs = require_rows(RESULTS / name)
    rows = Study([row for _, row in pairs])(**wanted).rows
    (run,) = (run for run, row in pairs if any(row is one for one in rows))
    return read_history(run)


def render(template: str) -> str:
    """Fill a template in."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    names: dict[str, Callable[..., Any]] = {"study": study, "history": history}
    return environment.from_string(template).render(names)


def page(template: Path) -> str:
    """A page of ``docs/`` as it should be."""
    return render(template.read_text(encoding="utf-8"))


def index() -> str:
    """``results/README.md`` as it should be."""
    return render(FOLDERS.read_text(encoding="utf-8"))


def readme() -> str:
    """README with its measured blocks as they should be."""
    written, *rest = README.read_text(encoding="utf-8").split(MARKS[0])
    blocks = render(TABLE.read_text(encoding="utf-8")).split(NEXT)
    for block, part in zip(blocks, rest, strict=True):
        written += f"{MARKS[0]}{block.lstrip()}{MARKS[1]}{part.partition(MARKS[1])[2]}"
    return written


def typed_numbers(template: str) -> list[str]:
    """The numbers with a decimal point, or behind ±, that a template states without computing them."""
    prose = re.sub(r"{[{%#].*?[}%#]}|`[^`]*`|!\[[^\]]*\]\([^)]*\)", "", template, flags=re.DOTALL)
    return re.findall(r"[−-]?\d+\.\d+|± ?\d+", prose)


if __name__ == "__main__":
    for source, target in PAGES.items():
        target.write_text(page(source), encoding="utf-8")
    INDEX.write_text(index(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")

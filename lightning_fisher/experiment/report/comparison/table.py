"""The comparison of methods as tables: error, difference to plain training, what it took, γ̂, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_fisher.experiment.records.option_names import value_name
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.paired_difference import mean_difference
from lightning_fisher.experiment.report.rows import Row, grouped, numbers, spread
from lightning_fisher.experiment.report.tables import MISSING, cell, markdown

NOISE, NAME = "data.label_noise", "comparison.name"
KINDS = {"epochs": "equal epochs", "evaluations": "equal gradient evaluations"}
SHOWN = ("gamma", "gamma_magnitude", "gamma_direction", "test_calibration_error")


def kind_of(row: Row) -> str:
    """``choose``, ``epochs`` or ``evaluations``."""
    return str(row["config"].get("comparison.job", "")).rstrip("0123456789")


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """The runs of one kind.

    A method whose steps cost as much as the budget of the second comparison trains for equally many epochs there: where
    it has no runs of that kind, those at equal epochs are the same trainings.
    """
    found = [row for row in rows if kind_of(row) == kind]
    if kind != "evaluations" or not found:
        return found
    have = {_method(row) for row in found}
    same = [row for row in rows if kind_of(row) == "epochs" and _costs_the_budget(row) and _method(row) not in have]
    return found + same


def _method(row: Row) -> tuple[Any, Any]:
    return row["config"].get(NOISE), row["config"].get(NAME)


def _costs_the_budget(row: Row) -> bool:
    return bool(row["config"].get("comparison.cost") == row["config"].get("comparison.budget"))


def evaluations(row: Row) -> float:
    """Gradient evaluations of a training step's samples, over the training, in those of a plain epoch."""
    return float(row["epochs"]) * float(row["config"]["comparison.cost"])


def methods_table(rows: Sequence[Row]) -> str:
    """The methods at the value of their parameter that validation chose, by labels and budget."""
    blocks = []
    for (noise,), members in grouped(rows, [NOISE]).items():
        for kind, words in KINDS.items():
            compared = of_kind(members, kind)
            if compared:
                blocks.append(f"{_labels(noise)}, {words}:\n\n" + _table(compared))
        tried = of_kind(members, "choose")
        if tried:
            blocks.append(f"{_labels(noise)}, validation error (%) of the values tried:\n\n" + _tried(tried))
    return "\n\n".join(blocks)


def _labels(noise: Any) -> str:
    return f"{100 * float(noise):g} % of the labels wrong" if noise else "Clean labels"


def _table(rows: Sequence[Row]) -> str:
    groups = {str(group[0]): members for group, members in grouped(rows, [NAME]).items()}
    plain = groups.get("none", [])
    epoch = numbers(plain, "seconds_per_epoch")
    lines = []
    for name, members in groups.items():
        work = spread([evaluations(row) for row in members]).mean
        seconds = numbers(members, "seconds_per_epoch")
        ratio = f"{spread(seconds).mean / spread(epoch).mean:.2f}" if epoch and seconds else MISSING
        lines.append(
            [
                value_name("reg", name),
                _value(members[0]),
                str(len(members)),
                cell(members, "test_error"),
                difference(members, plain) if name != "none" else MISSING,
                f"{work:.0f}",
                ratio,
                *(cell(members, key, QUANTITIES[key].form) for key in SHOWN),
            ]
        )
    headings = ["method", "parameter", "n", QUANTITIES["test_error"].heading, "minus plain, paired (points)"]
    headings += ["evaluations", "time of an epoch", *(QUANTITIES[key].heading for key in SHOWN)]
    return markdown(headings, lines)


def difference(rows: Sequence[Row], plain: Sequence[Row]) -> str:
    """The paired difference in test error and its 95 % interval over seeds."""
    before = {row["seed"]: row["test_error"] for row in plain}
    found = [row["test_error"] - before[row["seed"]] for row in rows if row["seed"] in before]
    if not found:
        return MISSING
    mean = mean_difference(found)
    interval = f" [{mean.low:+.2f}, {mean.high:+.2f}]" if mean.n > 1 else ""
    return f"{mean.mean:+.2f}{interval}"


def _value(row: Row) -> str:
    """The parameter of a run and its value."""
    parameter = row["config"].get("comparison.parameter")
    return MISSING if parameter is None else f"{parameter.rpartition('.')[2]} {row['config'].get(parameter):g}"


def _tried(rows: Sequence[Row]) -> str:
    lines = []
    for (name,), members in grouped(rows, [NAME]).items():
        parameter = members[0]["config"].get("comparison.parameter")
        if parameter is None:
            values = [cell(members, "val_error")]
        else:
            values = [f"{key[0]:g}: {cell(tried, 'val_error')}" for key, tried in grouped(members, [parameter]).items()]
        lines.append([value_name("reg", str(name)), str(len(members)), "; ".join(values)])
    return markdown(["method", "trials", "value: validation error"], lines)

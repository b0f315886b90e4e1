"""The tables of the reports, in the paper's form, with the paper's numbers beside ours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lightning_fisher.experiment.records.option_names import option_name, value_name
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.paper_values import STEP_MS, TABLE_1, TABLE_2, TABLE_3, Pair, Reported
from lightning_fisher.experiment.report.rows import Row, Spread, grouped, numbers, spread

COLUMNS = (
    "test_error",
    "train_error",
    "val_error",
    "train_loss",
    "gamma",
    "robustness",
    "frobenius_norm",
    "spectral_radius",
    "epochs",
    "fit_seconds",
)
MISSING = "–"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format an aligned Markdown table; it reads as well on a terminal."""
    widths = [max(len(line[i]) for line in (headings, *lines)) for i in range(len(headings))]

    def join(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([join(headings), join(["-" * width for width in widths]), *map(join, lines)])


def show(found: Spread | Reported | None, form: str = "{:.2f}") -> str:
    """Format mean ± standard deviation."""
    if found is None:
        return MISSING
    return form.format(found.mean) + (f" ± {form.format(found.std)}" if found.std is not None else "")


def number_cell(number: float, form: str = "{:.2f}") -> str:
    """A number in a table, or that there is none."""
    return MISSING if math.isnan(number) else form.format(number)


def interval_cell(number: float, low: float, high: float) -> str:
    """A number with its interval in a table, or that there is none."""
    return MISSING if math.isnan(number) else f"{number:.2f} [{number_cell(low)}, {number_cell(high)}]"


def cell(rows: Sequence[Row], key: str, form: str = "{:.2f}") -> str:
    """Format mean ± standard deviation of a value over rows."""
    values = numbers(rows, key)
    return show(spread(values), form) if values else MISSING


def stops(rows: Sequence[Row]) -> str:
    """Say how often the runs ended for which reason."""
    return ", ".join(
        f"{reason} {n}" for reason, n in Counter(str(row.get("stop_reason")) for row in rows).most_common()
    )


def summary(rows: Sequence[Row], keys: Sequence[str], wanted: Sequence[Any] | None = None) -> str:
    """Tabulate every measured value by the varied options."""
    shown = [QUANTITIES[key] for key in COLUMNS if numbers(rows, key)]
    headings = [*map(option_name, keys), "n", *(quantity.heading for quantity in shown), "stopped by"]
    lines = [
        [*named_values(keys, group), str(len(members)), *(cell(members, q.key, q.form) for q in shown), stops(members)]
        for group, members in grouped(rows, keys, wanted).items()
    ]
    return markdown(headings, lines)


def named_values(keys: Sequence[str], values: Sequence[Any]) -> list[str]:
    """The values of options in words."""
    return [value_name(key, value) for key, value in zip(keys, values, strict=True)]


def _by_reg(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {str(group[0]): members for group, members in grouped(rows, ["reg"]).items()}


def _counts(rows: Sequence[Row]) -> str:
    by_reg = _by_reg(rows)
    return "/".join(str(len(by_reg.get(reg, []))) for reg in ("none", "fisher"))


def _paper(pair: Pair | None, form: str = "{:.2f}") -> list[str]:
    return [show(pair.none, form), show(pair.fisher, form)] if pair is not None else [MISSING, MISSING]


def table_1(rows: Sequence[Row]) -> str:
    """Table 1: test error (%) without and with the regularizer."""
    lines = []
    for (data, model), members in grouped(rows, ["data", "model"]).items():
        by_reg = _by_reg(members)
        ours = [cell(by_reg.get(reg, []), "test_error") for reg in ("none", "fisher")]
        lines.append([str(data), str(model), _counts(members), *ours, *_paper(TABLE_1.get((str(data), str(model))))])
    headings = ["data", "model", "n", QUANTITIES["test_error"].heading, "+ regularizer", "paper", "paper + regularizer"]
    return markdown(headings, lines)


def _with_gaps(row: Row) -> Row:
    gaps = {}
    for suffix in ("", "_top5"):
        if row.get(f"test_error{suffix}") is not None and row.get(f"train_error{suffix}") is not None:
            gaps[f"gap{suffix}"] = row[f"test_error{suffix}"] - row[f"train_error{suffix}"]
    return {**row, **gaps}


def table_2(rows: Sequence[Row]) -> str:
    """Table 2: top-1 and top-5 error (%) of test and training images, and their gap."""
    by_reg = _by_reg([_with_gaps(row) for row in rows])
    names = {"test_error": "top-1 test", "train_error": "top-1 train", "gap": "top-1 gap"}
    names |= {"test_error_top5": "top-5 test", "train_error_top5": "top-5 train", "gap_top5": "top-5 gap"}
    lines = []
    for key, name in names.items():
        ours = [cell(by_reg.get(reg, []), key) for reg in ("none", "fisher")]
        lines.append([name, _counts(rows), *ours, *_paper(TABLE_2[key])])
    return markdown(
        ["error (%)", "n", "ours", "+ regularizer", "paper (WRN-18, ImageNet)", "paper + regularizer"], lines
    )


def table_3(rows: Sequence[Row]) -> str:
    """Table 3: γ̂ without and with the regularizer, at one norm of the logits."""
    lines = []
    for (model,), members in grouped(rows, ["model"]).items():
        by_reg = _by_reg(members)
        ours = [cell(by_reg.get(reg, []), "gamma", "{:.1f}") for reg in ("none", "fisher")]
        lines.append([str(model), _counts(members), *ours, *_paper(TABLE_3.get(str(model)), "{:.1f}")])
    return markdown(
        ["model", "n", QUANTITIES["gamma"].heading, "+ regularizer", "paper (CIFAR-10)", "paper + regularizer"], lines
    )


def step_cost(rows: Sequence[Row]) -> str:
    """What a step costs (Sec. 7.2.1), in ms, and how many times a plain one a regularized one takes."""
    lines = []
    for (model,), members in grouped(rows, ["model"]).items():
        plain, regularized = numbers(members, "step_ms_plain"), numbers(members, "step_ms_regularized")
        ratio = spread(regularized).mean / spread(plain).mean if plain and regularized else None
        pair = STEP_MS.get(str(model))
        paper = f"{pair.fisher.mean / pair.none.mean:.2f}" if pair is not None else MISSING
        ours = [cell(members, f"step_ms_{phase}", "{:.1f}") for phase in ("plain", "regularized")]
        times = f"{ratio:.2f}" if ratio is not None else MISSING
        hardware = members[0]["hardware"]
        device = f"{hardware['devices']} x {hardware['cpu'] if hardware['device'] == 'cpu' else hardware['device']}"
        lines.append([str(model), _counts(members), *ours, times, *_paper(pair, "{:.1f}"), paper, device])
    headings = ["model", "n", "plain (ms)", "regularized (ms)", "ratio"]
    return markdown([*headings, "paper: plain", "paper: regularized", "paper: ratio", "hardware"], lines)


def select_beta(rows: Sequence[Row]) -> str:
    """The validation error (%) of every beta, the least one marked."""
    groups = grouped(rows, ["reg.beta"])
    means = {group: spread(numbers(members, "val_error")).mean for group, members in groups.items()}
    best = min(means, key=lambda group: means[group])
    lines = [
        [f"{group[0]:g}" + (" (least)" if group == best else ""), str(len(members))]
        + [
            cell(members, key, form)
            for key, form in (("val_error", "{:.2f}"), ("test_error", "{:.2f}"), ("gamma", "{:.1f}"))
        ]
        for group, members in groups.items()
    ]
    return markdown(
        [option_name("reg.beta"), "n", *(QUANTITIES[key].heading for key in ("val_error", "test_error", "gamma"))],
        lines,
    )


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "table1": table_1,
    "table2": table_2,
    "table3": table_3,
    "step_cost": step_cost,
    "select_beta": select_beta,
}

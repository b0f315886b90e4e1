"""What a method changes: differences from the baseline between runs that share everything else, the seed included."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_fisher.experiment.records.option_names import in_words, option_name
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.paired_difference import mean_difference
from lightning_fisher.experiment.report.rows import Row, grouped
from lightning_fisher.experiment.report.tables import MISSING, markdown, named_values

LEAST = 3  # pairs: of two, an interval is 13 times as wide as their distance, or a point
COMPARED = ("test_error", "train_error", "gamma", "gamma_direction")


def methods(keys: Sequence[str]) -> list[str]:
    """Those of the varied options that say how a network was trained against over-fitting: ``reg`` and below."""
    return [key for key in keys if key.split(".")[0] == "reg"]


def _pairs(rows: Sequence[Row], baseline: Sequence[Row], metric: str) -> list[float]:
    before = {row["seed"]: row.get(metric) for row in baseline}
    found = [(row.get(metric), before.get(row["seed"])) for row in rows]
    return [float(after) - float(b) for after, b in found if after is not None and b is not None]


def differences_table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Tabulate the paired differences of every method from the first (none, or weight 0); empty without pairs."""
    by = methods(keys)
    rest = [key for key in keys if key not in by]
    if not by:
        return ""
    shown = [QUANTITIES[key] for key in COMPARED if any(row.get(key) is not None for row in rows)]
    lines = []
    for setting, members in grouped(rows, rest).items():
        groups = list(grouped(members, by).items())
        for method, runs in groups[1:]:
            found = [_pairs(runs, groups[0][1], quantity.key) for quantity in shown]
            if found and found[0]:
                cells = [_cell(d, quantity.signed) for d, quantity in zip(found, shown, strict=True)]
                first = mean_difference(found[0])
                lower = f"{first.lower} of {first.n}"
                names = [*named_values(rest, setting), *named_values(by, method)]
                lines.append([*names, str(first.n), cells[0], lower, *cells[1:]])
        baseline = ", ".join(in_words(key, v) for key, v in zip(by, groups[0][0], strict=True))
    if not lines:
        return ""
    names = [option_name(key) for key in (*rest, *by)]
    headings = [*names, "pairs", shown[0].difference, "lower", *(quantity.difference for quantity in shown[1:])]
    few = any(int(line[len(names)]) < LEAST for line in lines)
    note = f" No intervals of fewer than {LEAST} pairs." if few else ""
    return f"Baseline: {baseline}.{note}\n\n" + markdown(headings, lines)


def _cell(differences: Sequence[float], form: str) -> str:
    if not differences:
        return MISSING
    found = mean_difference(differences)
    interval = f" [{form.format(found.low)}, {form.format(found.high)}]" if found.n >= LEAST else ""
    return form.format(found.mean) + interval

"""The trainings of a study in one table: what each method ends with."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_fisher.experiment.records.option_names import option_name
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.rows import Row, grouped, value
from lightning_fisher.experiment.report.tables import cell, named_values
from lightning_fisher.experiment.report.tables import markdown as table


def wrong_labels(rows: Sequence[Row]) -> float:
    """The share of the training labels that were replaced by wrong ones, in per cent; 0 where the rows differ in it."""
    shares = {float(value(row, "data.label_noise") or 0.0) for row in rows}
    return 100 * shares.pop() if len(shares) == 1 else 0.0


def curves_table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Test error, and how many of the given training labels the finished network reproduces.

    Args:
        rows: the runs.
        keys: the options that make the lines.
    """
    with_fit = [{**row, "fitted": 100 - row["train_error"]} for row in rows]
    headings = [*map(option_name, keys), "n", QUANTITIES["test_error"].heading, "training labels reproduced (%)"]
    lines = [
        [
            *named_values(keys, group),
            str(len(members)),
            *(cell(members, key, "{:.1f}") for key in ("test_error", "fitted")),
            cell(members, "fit_seconds", "{:.0f}"),
        ]
        for group, members in grouped(with_fit, keys).items()
    ]
    text = table([*headings, QUANTITIES["fit_seconds"].heading], lines)
    if share := wrong_labels(rows):
        text += f"\n\n{share:g} % of the training labels are wrong: a network that learned none of them reproduces "
        text += f"about {100 - share:g} %. The labels of the test images are right."
    return text

"""The comparison of methods as one figure: test error by method, a panel for clean and for wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.records.option_names import value_name
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.comparison.table import KINDS, NAME, NOISE, kind_of, of_kind
from lightning_fisher.experiment.report.rows import Row, grouped, numbers, spread

BUDGET = 0.4  # between the budgets of a method, of the distance between methods
APART = 0.08  # of dots and mean from the middle of their budget


def plot_methods(rows: Sequence[Row], path: Path) -> Path:
    """Plot the test error: a row a method, a mark a budget, the runs as dots, mean ± std below them.

    Args:
        rows: the runs.
        path: of the PNG.
    """
    compared = [row for row in rows if kind_of(row) in KINDS]
    panels = list(grouped(compared, [NOISE]).items())
    kinds = {kind: words for kind, words in KINDS.items() if of_kind(compared, kind)}
    names = [str(group[0]) for group in grouped(compared, [NAME])]
    with matplotlib.rc_context(style.RC):
        counts: list[int] = []
        figure, axes = style.grid(
            len(panels), width=3.6 if len(panels) > 1 else 5.2, height=max(2.4, 1.0 + 0.32 * len(names))
        )
        for column, (axis, ((noise,), members)) in enumerate(zip(axes, panels, strict=True)):
            for look, (kind, words) in enumerate(kinds.items()):
                color, marker, _ = style.SERIES[look]
                shift = BUDGET * (look - (len(kinds) - 1) / 2)
                label: str | None = words
                for place, name in enumerate(names):
                    runs = [row for row in of_kind(members, kind) if row["config"].get(NAME) == name]
                    values = numbers(runs, "test_error")
                    if not values:
                        continue
                    counts.append(len(values))
                    found = spread(values)
                    dots = [place + shift - APART] * len(values)
                    axis.scatter(values, dots, color=color, s=7, alpha=0.55, linewidths=0)
                    axis.errorbar(
                        found.mean,
                        place + shift + APART,
                        xerr=found.std,
                        color=color,
                        marker=marker,
                        capsize=2,
                        linestyle="none",
                        label=label if column == 0 else None,
                    )
                    label = None
            axis.set_yticks(
                range(len(names)), [value_name("reg", n) for n in names] if column == 0 else [""] * len(names)
            )
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.grid(False, axis="y")
            axis.set_xlabel(QUANTITIES["test_error"].axis)
            axis.set_title(f"{100 * noise:g} % wrong labels" if noise else "clean labels")
        style.title(figure, "Which method has the lowest test error?")
        each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
        words = f"Dots: networks; bars: mean and standard deviation of {each} each"
        style.legend(figure, *axes[0].get_legend_handles_labels(), words)
        return style.save(figure, path)

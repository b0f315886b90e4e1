"""A figure for studies in which more than two options vary: a line of runs for every combination."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.records.option_names import in_words
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.rows import Row, grouped, numbers, spread


def plot_groups(rows: Sequence[Row], keys: Sequence[str], path: Path, *, quantities: Sequence[str]) -> Path:
    """Plot one panel a quantity, one line a combination of options: the runs as dots, mean ± std below them.

    Args:
        rows: the runs.
        keys: the options that vary; a line is named by their values.
        path: of the PNG.
        quantities: their keys in rows.
    """
    groups = grouped(rows, keys)
    panels = [key for key in quantities if numbers(rows, key)]
    color, marker, _ = style.SERIES[0]
    names = [", ".join(in_words(key, value) for key, value in zip(keys, values, strict=True)) for values in groups]
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(panels), width=4.6, height=max(2.2, 0.8 + 0.32 * len(groups)))
        for column, (axis, key) in enumerate(zip(axes, panels, strict=True)):
            for place, members in enumerate(groups.values()):
                values = numbers(members, key)
                if not values:
                    continue
                found = spread(values)
                axis.scatter(values, [place - 0.12] * len(values), color=color, s=9, alpha=0.55, linewidths=0)
                axis.errorbar(found.mean, place + 0.12, xerr=found.std, color=color, marker=marker, capsize=3)
            axis.set_yticks(range(len(groups)), names if column % 2 == 0 else [""] * len(groups))
            axis.set_ylim(len(groups) - 0.5, -0.5)
            axis.grid(False, axis="y")
            axis.set_xlabel(QUANTITIES[key].axis)
        return style.save(figure, path)

"""Figures of methods: each beside the others for every network, or a line for every combination of options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.records.option_names import in_words, value_name
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.figures import sizes
from lightning_fisher.experiment.report.rows import Row, grouped, numbers, spread

GAP = 0.32  # between the methods of a network, of the distance between networks


def plot_pairs(rows: Sequence[Row], key: str, path: Path) -> Path:
    """Plot a quantity for every network and method: the runs as dots, mean ± std beside them.

    Args:
        rows: the runs.
        key: the quantity.
        path: of the PNG.
    """
    nets = grouped(rows, ["data", "model"])
    methods = [group[0] for group in grouped(rows, ["reg"])]
    with matplotlib.rc_context(style.RC):
        figure, (axis,) = style.grid(1, width=max(3.6, 1.4 + 1.3 * len(nets)), height=3.0)
        for look, method in enumerate(methods):
            color, marker, _ = style.SERIES[look % len(style.SERIES)]
            shift = GAP * (look - (len(methods) - 1) / 2)
            named = False
            for place, members in enumerate(nets.values()):
                values = numbers([m for m in members if m["choices"].get("reg") == method], key)
                if not values:
                    continue
                found = spread(values)
                axis.scatter([place + shift - 0.06] * len(values), values, color=color, s=9, alpha=0.55, linewidths=0)
                axis.errorbar(
                    place + shift + 0.04,
                    found.mean,
                    yerr=found.std,
                    color=color,
                    marker=marker,
                    capsize=3,
                    linestyle="none",
                    label=None if named else value_name("reg", method),
                )
                named = True
        axis.set_xticks(range(len(nets)), [f"{value_name('model', m)}\n{value_name('data', d)}" for d, m in nets])
        axis.set_xlim(-0.6, len(nets) - 0.4)
        axis.grid(False, axis="x")
        axis.set_ylabel(QUANTITIES[key].axis)
        lower = key == "test_error"
        name = QUANTITIES[key].name
        style.title(figure, f"Which method has the lower {name}?" if lower else f"How do methods change {name}?")
        cells = grouped(rows, ["data", "model", "reg"]).values()
        note = f"Dots: networks; bars: mean and standard deviation of {sizes(cells)} each"
        style.legend(figure, *axis.get_legend_handles_labels(), note)
        return style.save(figure, path)


def plot_groups(rows: Sequence[Row], keys: Sequence[str], path: Path, *, quantities: Sequence[str]) -> Path:
    """Plot one panel a quantity, one line a combination of options: the runs as dots, mean ± std below them.

    A line is named by the options in which it differs from most of the others; what most of them share is said once.

    Args:
        rows: the runs.
        keys: the options that vary.
        path: of the PNG.
        quantities: their keys in rows.
    """
    groups = grouped(rows, keys)
    panels = [key for key in quantities if numbers(rows, key)]
    color, marker, _ = style.SERIES[0]
    usual = most_common(list(groups)) if len(keys) > 2 else ()
    names = [f"{named(keys, values, usual)} (n = {len(members)})" for values, members in groups.items()]
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(panels), width=3.8, height=max(2.2, 0.8 + 0.32 * len(groups)))
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
        about = " and ".join(QUANTITIES[key].name for key in panels)
        style.title(figure, f"How do the settings differ in {about}?")
        note = f"\nUnless said otherwise: {named(keys, usual)}" if usual else ""
        drawn = f"Dots: networks; bars: mean and standard deviation of {sizes(groups.values())} each"
        style.legend(figure, [], [], f"{drawn}{note}")
        return style.save(figure, path)


def most_common(combinations: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The most common value of every option; of equally common ones the first."""
    return tuple(max(column, key=column.count) for column in map(list, zip(*combinations, strict=True)))


def named(keys: Sequence[str], values: Sequence[Any], usual: Sequence[Any] = ()) -> str:
    """Options and their values in words, the usual ones left out."""
    differ = [i for i in range(len(keys)) if not usual or values[i] != usual[i]]
    return ", ".join(in_words(keys[i], values[i]) for i in differ) or "as said below"

"""Results as one figure of bars."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.contenders_gram import OURS
from benchmarks.contenders_step import FORMS
from benchmarks.tables import Row, groups
from lightning_fisher.experiment.display.plot_style import BLUE, GRAY, RC, legend, save, title
from lightning_fisher.experiment.records.option_names import value_name

BAR = 0.36
LIGHT = {BLUE: "#8CBFDF", GRAY: "#B8B8B8"}


def draw(sections: dict[str, Any], path: Path) -> Path | None:
    """A panel a network of gram, step and loop, and of the memory of ξ; ``None`` if none of them was measured."""
    panels = _panels(sections)
    if not panels:
        return None
    heights = [max(len(groups(rows, "contender")), 2) + 1 for _, rows, _ in panels]
    with matplotlib.rc_context(RC | {"axes.grid": False}):
        figure = Figure(figsize=(6.4, 0.31 * sum(heights) + 0.8 * len(heights) + 0.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (name, rows, unit) in zip(axes, panels, strict=True):
            _bars(axis, name, rows, unit)
        title(figure, "What do ξ and a regularized step cost, beside what others take?")
        threads = sorted({row["threads"] for _, rows, _ in panels for row in rows})
        many = f"Dark: {threads[0]} thread, light: {threads[1]}. " if len(threads) > 1 else ""
        legend(figure, [], [], f"{many}Blue: this package. Times: median over the rounds, lines: quartiles")
    return save(figure, path)


def _panels(sections: dict[str, Any]) -> list[tuple[str, list[Row], str]]:
    """``(title, rows with contender, threads and value, axis label)``."""
    panels = []
    for section, what in (("gram", "Time of ξ"), ("step", "Time of a training step"), ("loop", "Time of an epoch")):
        if section in sections:
            for (network,), rows in groups(sections[section]["tables"]["times"], "network").items():
                first = rows[0]["contender"]
                values = [row | {"value": row["ratio"], "ends": (row["ratio_low"], row["ratio_high"])} for row in rows]
                panels.append((f"{what}: {network}", values, f"time relative to {first}"))
    if "memory" in sections:
        for (network, kind), rows in groups(sections["memory"]["tables"]["memory"], "network", "kind").items():
            if kind == "gram" and len(rows) > 1:
                values = [row | {"value": row["extra_mib"], "threads": 1} for row in rows]
                panels.append((f"Memory of ξ: {value_name('model', network)}", values, "peak extra memory (MiB)"))
    return panels


def _bars(axis: Axes, name: str, rows: list[Row], unit: str) -> None:
    names = [name for (name,) in groups(rows, "contender")]
    counts = [count for (count,) in groups(rows, "threads")]
    for index, count in enumerate(counts):
        shift = (index - (len(counts) - 1) / 2) * BAR
        for row in (r for r in rows if r["threads"] == count):
            color = BLUE if _is_ours(row["contender"]) else GRAY
            position = names.index(row["contender"]) + shift
            axis.barh(position, row["value"], BAR * 0.92, color=color if index == 0 else LIGHT[color])
            low, high = row.get("ends", (row["value"], row["value"]))
            if high > low:
                axis.plot([low, high], [position, position], color="black", linewidth=0.8)
            text = f"{row['value']:.0f}" if row["value"] >= 100 else f"{row['value']:.2f}"
            axis.annotate(
                text, (max(high, row["value"]), position), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
    axis.set_yticks(range(len(names)), [textwrap.fill(name, 30) for name in names])
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.set_xlim(0, 1.12 * max(value for row in rows for value in (row["value"], *row.get("ends", ()))))
    axis.set_title(name, loc="left")
    if "relative" in unit:
        axis.axvline(1.0, color="black", linewidth=0.6, linestyle=":")


def _is_ours(contender: str) -> bool:
    ours = (*FORMS, "amortized")
    return contender == OURS or "FisherRegularizer" in contender or contender.startswith(ours)

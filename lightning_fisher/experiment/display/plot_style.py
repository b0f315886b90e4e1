"""How the figures look: colors of Okabe & Ito, which color-blind readers tell apart, and marks for gray print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, GRAY = "#CC79A7", "#56B4E9", "#000000", "#666666"

# One look a series: color, marker and line differ together, so that any one of them suffices.
SERIES = (
    (BLUE, "o", "-"),
    (VERMILION, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", ":"),
    (ORANGE, "v", (0, (5, 1, 1, 1))),
    (SKY, "P", (0, (3, 1))),
)

RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "figure.dpi": 150,
    "savefig.dpi": 200,
}


def grid(panels: int, columns: int = 2, width: float = 4.2, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``panels`` axes in ``columns`` columns.

    Args:
        panels: number of axes.
        columns: most columns; three panels stand in one row.
        width: of a panel, inches.
        height: of a panel, inches.
    """
    columns = panels if panels == 3 else min(columns, panels)
    rows = -(-panels // columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr, call-arg]
        axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
        for axis in axes:
            axis.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Save a figure as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        figure.savefig(path)
    return path

"""How the figures look: colors of Okabe & Ito, which color-blind readers tell apart, and marks for gray print."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

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
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
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


CHARACTERS = 13.0  # of the font of a legend in an inch, about
TITLE = 11  # points: the question that a figure answers
LINE = 0.19  # inches: a line of a title or a legend


def grid(panels: int, columns: int = 2, width: float = 3.2, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``panels`` axes in ``columns`` columns.

    Two panels of the default width make a figure whose text is still legible on a telephone.

    Args:
        panels: number of axes.
        columns: most columns.
        width: of a panel, inches.
        height: of a panel, inches; `title` and `legend` add what they take.
    """
    columns = min(columns, panels)
    rows = -(-panels // columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr, call-arg]
        axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
        for axis in axes:
            axis.set_axisbelow(True)
    return figure, axes


def title(figure: Figure, question: str) -> None:
    """Write the question that a figure answers above it, in as many lines as it needs."""
    width = int(figure.get_figwidth() * CHARACTERS * 9 / TITLE)
    text = "\n".join(textwrap.fill(line, width) for line in question.splitlines())
    _heighten(figure, len(text.splitlines()))
    figure.suptitle(text, fontsize=TITLE)


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], note: str = "") -> None:
    """Put the legend below a figure, as many entries in a line as fit.

    Args:
        figure: where.
        handles: what is explained.
        labels: the explanations.
        note: what is drawn: the number of networks, the meaning of a band.
    """
    room = figure.get_figwidth() * CHARACTERS
    each = max((len(label) for label in labels), default=0) + 7  # and the handle
    entries = max(1, len(labels))
    lines = -(-entries // max(1, int(room / each)))
    text = "\n".join(textwrap.fill(line, int(room)) for line in note.splitlines())
    _heighten(figure, len(text.splitlines()) + (lines if labels else 0) + 1)
    made = figure.legend(
        handles, labels, title=text or None, loc="outside lower center", ncols=-(-entries // lines), frameon=False
    )
    made.get_title().set_multialignment("center")


def _heighten(figure: Figure, lines: int) -> None:
    figure.set_figheight(figure.get_figheight() + LINE * lines)


def signed(text: str) -> str:
    """The hyphens of negative numbers as minus signs, as on the axes."""
    return re.sub(r"(?<![\w.])-(?=[\d.])", "−", text)


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis of less than two decades with plain numbers, instead of 2 × 10⁰, 3 × 10⁰.

    Very small and very large numbers, and longer axes, keep their powers of ten, and have none between them.
    """
    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() != "log" or low <= 0:
        return
    if high >= 100 * low or low < 1e-4 or high >= 1e6:
        if high >= 10 * low:
            axis.set_minor_formatter(NullFormatter())
        return
    axis.set_major_locator(MaxNLocator(4) if high < 10 * low else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def save(figure: Figure, path: Path) -> Path:
    """Save a figure as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for axes in figure.axes:
        axes.autoscale_view()
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
    with matplotlib.rc_context(RC):
        figure.savefig(path)
    return path

"""The figures of the reports: metrics against the varied value, and against the test error."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lightning_fisher.arguments import is_number
from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.records.option_names import option_name, value_name
from lightning_fisher.experiment.records.quantities import METRICS, QUANTITIES
from lightning_fisher.experiment.report.rank_table import Correlation, all_correlations
from lightning_fisher.experiment.report.rows import Row, grouped, numbers, spread
from lightning_fisher.experiment.report.tables import interval_cell

ZERO = 0.7  # decades that a zero stands before the least positive value of a logarithmic axis
MOST_BANDS = 3  # of a panel: more of them hide each other
CROWDED = 0.16  # of an axis: labels that are closer are turned
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ"}
LOGARITHMIC = 8.0  # a positive quantity that spans more than this factor gets a logarithmic axis


def positions(values: Sequence[Any]) -> list[float]:
    """Where values stand on the x axis: numbers at their place, by their logarithms if they grow by factors.

    A zero among those stands by itself before the least of them. What isn't a number is spread evenly.
    """
    if not all(is_number(v) for v in values):
        return list(map(float, range(len(values))))
    positive = [v for v in values if v > 0]
    decades = LOGARITHMIC if len(positive) == len(values) else 5 * LOGARITHMIC  # beside a zero
    if len(positive) > 2 and min(values) >= 0 and max(positive) / min(positive) >= decades:
        return [math.log10(v if v > 0 else min(positive)) - ZERO * (v == 0) for v in values]
    return list(map(float, values))


def band(
    axis: Axes,
    x: Sequence[float],
    groups: Sequence[Sequence[float]],
    look: int,
    label: str,
    *,
    least: float = -math.inf,
    bars: bool = False,
) -> Any:
    """Draw mean ± standard deviation of groups of values over x; empty groups are left out.

    On a logarithmic axis mean and deviation are those of the logarithm (the geometric mean): the band is as wide
    above as below, and never reaches zero.

    Args:
        axis: where to draw.
        x: the places of the groups.
        groups: their values.
        look: number of the look of the line.
        label: of the line.
        least: the least possible value, below which no spread is drawn: 0 of a percentage.
        bars: error bars in place of a band, for the second of two scales.
    """
    logarithmic = axis.get_yscale() == "log"
    groups = [[math.log(v) for v in values] for values in groups] if logarithmic else groups
    pairs = [(place, spread(values)) for place, values in zip(x, groups, strict=True) if values]
    back = math.exp if logarithmic else float
    places, means = [p for p, _ in pairs], [back(s.mean) for _, s in pairs]
    low = [max(least, back(s.mean - (s.std or 0.0))) for _, s in pairs]
    high = [back(s.mean + (s.std or 0.0)) for _, s in pairs]
    color, marker, dashes = style.SERIES[look]
    (line,) = axis.plot(places, means, color=color, marker=marker, linestyle=dashes, label=label)
    if bars:
        lengths = [[m - e for m, e in zip(means, low, strict=True)], [e - m for m, e in zip(means, high, strict=True)]]
        axis.errorbar(places, means, yerr=lengths, color=color, linestyle="none", capsize=2.5, linewidth=1.0)
    else:
        axis.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    return line


def sizes(groups: Iterable[Sequence[Any]]) -> str:
    """How many networks are in each of some groups: ``3 networks``, ``3 to 10 networks``."""
    counts = sorted({len(members) for members in groups if members})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} network{'' if counts == [1] else 's'}"


def what_is_drawn(groups: Iterable[Sequence[Any]]) -> str:
    """What a line of groups of networks shows."""
    number = sizes(groups)
    return (
        "One network each" if number == "1 network" else f"Line and band: mean and standard deviation of {number} each"
    )


def in_symbols(label: str) -> str:
    """The label of an axis, with Greek letters that it spells out."""
    return re.sub(r"\b(alpha|beta|gamma)\b", lambda found: GREEK[found[1]], label)


def changes_with(name: str) -> str:
    """The title of a figure over an option: β, or the weight of the penalty."""
    return f"What changes with {name if len(name) == 1 else f'the {name}'}?"


def least_of(key: str) -> float:
    """The least value that a quantity can have: 0 of a percentage."""
    return 0.0 if QUANTITIES[key].unit == "%" else -math.inf


def scale(axis: Axes, values: Sequence[float]) -> None:
    """Choose a logarithmic y axis for positive values that span decades."""
    if values and min(values) > 0 and max(values) / min(values) > LOGARITHMIC:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(numticks=6))
        axis.yaxis.set_minor_formatter(NullFormatter())


def x_axis(axis: Axes, x: str, values: Sequence[Any], label: str = "") -> list[float]:
    """Set up the x axis of varied values and return their places."""
    places = positions(values)
    names = [f"{v:g}" if isinstance(v, float) else textwrap.fill(value_name(x, v), 11) for v in values]
    near = min((abs(b - a) for a, b in pairwise(places)), default=0.0)
    turned: dict[str, Any] = (
        {"rotation": 45, "rotation_mode": "anchor", "ha": "right"} if near < CROWDED * _width(places) else {}
    )
    axis.set_xticks(places, names, **turned)
    axis.set_xlabel(in_symbols(label) or option_name(x))
    return places


def _width(places: Sequence[float]) -> float:
    return max(places) - min(places)


def plot_scenario(
    rows: Sequence[Row], x: str, path: Path, label: str = "", wanted: Sequence[Any] | None = None
) -> Path:
    """Plot one panel a metric: mean ± std on the left axis, the test error on the right one, over the varied value.

    Args:
        rows: the runs.
        x: the varied option.
        path: of the PNG.
        label: of the x axis.
        wanted: order of the values.
    """
    groups = {group[0]: members for group, members in grouped(rows, [x], wanted).items()}
    panels = [key for key in METRICS if numbers(rows, key)]
    logarithmic = False
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(panels))
        for panel, (axis, key) in enumerate(zip(axes, panels, strict=True)):
            scale(axis, numbers(rows, key))
            places = x_axis(axis, x, list(groups), label)
            left = band(axis, places, [numbers(members, key) for members in groups.values()], 0, "metric")
            axis.set_ylabel(QUANTITIES[key].axis, color=style.BLUE)
            right = axis.twinx()
            right.spines["right"].set_visible(True)
            right.grid(False)
            errors = [numbers(m, "test_error") for m in groups.values()]
            error = band(right, places, errors, 1, "test error", least=0.0, bars=True)
            if panel % 2 or panel == len(panels) - 1:
                right.set_ylabel(QUANTITIES["test_error"].axis, color=style.VERMILION)
            if axis.get_yscale() == "log":
                logarithmic = True
        note = what_is_drawn(groups.values()).replace("band", "band or bars")
        note += "; of the logarithm where the axis is logarithmic" if logarithmic else ""
        style.title(figure, "Which metric follows the test error?")
        style.legend(figure, [left, error], ["metric, left axis", "test error, right axis"], note)
        return style.save(figure, path)


def plot_ranking(
    rows: Sequence[Row],
    x: str | None,
    path: Path,
    label: str = "",
    wanted: Sequence[Any] | None = None,
    found: Mapping[str, Sequence[Correlation]] | None = None,
) -> Path:
    """Plot every run: test error against each metric, the varied value (if any) by color and marker, tau as title.

    Args:
        rows: the runs.
        x: the varied option, None without one.
        path: of the PNG.
        label: of the varied option.
        wanted: order of its values.
        found: the rank correlations, as `all_correlations` gives them; None computes them.
    """
    found = all_correlations(rows) if found is None else found
    groups = {group[0]: members for group, members in grouped(rows, [x], wanted).items()} if x else {"": list(rows)}
    panels = [key for key in METRICS if numbers(rows, key)]
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(panels))
        for panel, (axis, key) in enumerate(zip(axes, panels, strict=True)):
            values = numbers(rows, key)
            if min(values) > 0 and max(values) / min(values) > LOGARITHMIC:
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(LogLocator(numticks=5))
                axis.xaxis.set_minor_formatter(NullFormatter())
            else:
                axis.xaxis.set_major_locator(MaxNLocator(5))
            for look, (name, members) in enumerate(groups.items()):
                color, marker, _ = style.SERIES[look % len(style.SERIES)]
                points = [(m[key], m["test_error"]) for m in members if m.get(key) is not None]
                x_values, y_values = zip(*points, strict=True)
                axis.scatter(
                    x_values, y_values, color=color, marker=marker, s=22, label=value_name(x or "", name), linewidths=0
                )
            axis.set_xlabel(QUANTITIES[key].axis)
            if panel % 2 == 0:
                axis.set_ylabel(QUANTITIES["test_error"].axis)
            if key in found:
                tau = found[key][0]
                axis.set_title(style.signed(rf"$\tau$ = {interval_cell(tau.statistic, tau.low, tau.high)}"))
        handles, names = axes[0].get_legend_handles_labels()
        style.title(figure, f"Which metric orders {len(rows)} networks by their test error?")
        note = r"One dot a network; Kendall's $\tau$ [95 % interval]" if found else "One dot a network"
        shown = f"{note}\nMarks: {in_symbols(label) or option_name(x)}" if x else note
        style.legend(figure, handles if x else [], names if x else [], shown)
        return style.save(figure, path)


def plot_lines(
    rows: Sequence[Row],
    x: str,
    path: Path,
    *,
    quantities: Sequence[str],
    by: Sequence[str] = (),
    label: str = "",
    wanted: Sequence[Any] | None = None,
) -> Path:
    """Plot one panel a quantity over the varied value, one line for every combination of other options.

    Args:
        rows: the runs.
        x: the varied option.
        path: of the PNG.
        quantities: their keys in rows.
        by: the options that make the lines; none for one line.
        label: of the x axis.
        wanted: order of the values of x.
    """
    values = [group[0] for group in grouped(rows, [x], wanted)]
    lines = grouped(rows, list(by)) if by else {(): list(rows)}
    bars = len(lines) > MOST_BANDS
    panels = [key for key in quantities if numbers(rows, key)]
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(panels))
        for axis, key in zip(axes, panels, strict=True):
            scale(axis, numbers(rows, key) if QUANTITIES[key].unit != "%" else [])
            places = x_axis(axis, x, values, label)
            for look, (name, members) in enumerate(lines.items()):
                at = [numbers([m for m in members if grouped([m], [x]).keys() == {(v,)}], key) for v in values]
                named = ", ".join(value_name(option, one) for option, one in zip(by, name, strict=True))
                band(axis, places, at, look % len(style.SERIES), named, least=least_of(key), bars=bars)
            axis.set_ylabel(QUANTITIES[key].axis)
        handles, names = axes[0].get_legend_handles_labels()
        cells = grouped(rows, [x, *by]).values()
        style.title(figure, changes_with(in_symbols(label) or option_name(x)))
        note = what_is_drawn(cells).replace("band", "bars") if bars else what_is_drawn(cells)
        style.legend(figure, handles if by else [], names if by else [], note)
        return style.save(figure, path)

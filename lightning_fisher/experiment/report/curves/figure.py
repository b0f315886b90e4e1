"""The trainings of a study in one figure: the errors over the epochs, a line for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.records.option_names import in_words
from lightning_fisher.experiment.report.curves.table import wrong_labels
from lightning_fisher.experiment.report.figures import what_is_drawn
from lightning_fisher.experiment.report.rows import Row, grouped, spread

Records = Sequence[Mapping[str, float]]
Panel = tuple[str, str, Any]  # key of the records, title, what is drawn of a value
HELD_OUT: Panel = ("val_error", "Validation images: error (%)", float)
FITTED: Panel = ("train_error", "Training labels reproduced (%)", lambda error: 100.0 - error)


def plot_curves(rows: Sequence[Row], histories: Sequence[Records], keys: Sequence[str], path: Path) -> Path:
    """Plot the validation error and the training labels reproduced over the epochs, mean ± std for every method.

    Args:
        rows: the runs.
        histories: the records of each run's ``history.csv``, in the same order.
        keys: the options that make the lines.
        path: of the PNG.
    """
    of_row = {id(row): records for row, records in zip(rows, histories, strict=True)}
    groups = {key: [of_row[id(row)] for row in members] for key, members in grouped(rows, keys).items()}
    panels = [panel for panel in (HELD_OUT, FITTED) if any(panel[0] in r for records in histories for r in records)]
    share = wrong_labels(rows)
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(panels))
        for axis, panel in zip(axes, panels, strict=True):
            for look, (group, members) in enumerate(groups.items()):
                name = ", ".join(in_words(key, value) for key, value in zip(keys, group, strict=True))
                _line(axis, members, panel, look % len(style.SERIES), name)
            axis.set(xlabel="epoch", title=panel[1])
            axis.set_ylim(bottom=0)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if (switch := _switch(histories)) is not None:
                axis.axvline(switch, color=style.BLACK, linestyle=":", linewidth=1.2, label="regularizer on")
            if share and panel is FITTED:
                axis.axhline(100 - share, color=style.GRAY, linewidth=1.0)
                note = f"{100 - share:g} % are right"
                axis.annotate(note, (0.99, 100 - share), xycoords=("axes fraction", "data"), **ABOVE)
        handles: dict[str, Any] = {}
        for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        about = f"{share:g} % of the training labels are wrong: which network learns them?"
        style.title(figure, about if share else "How do the errors change during training?")
        style.legend(figure, list(handles.values()), list(handles), what_is_drawn(list(groups.values())))
        return style.save(figure, path)


ABOVE: dict[str, Any] = {
    "xytext": (0, 3),
    "textcoords": "offset points",
    "color": style.GRAY,
    "fontsize": 8,
    "ha": "right",
    "va": "bottom",
}


def _line(axis: Axes, members: Sequence[Records], panel: Panel, look: int, name: str) -> None:
    """Mean ± std of the runs over the epochs that all of them have."""
    key, _, drawn = panel
    values = [{int(r["epoch"]) + 1: drawn(r[key]) for r in records if key in r} for records in members]
    epochs = sorted(set.intersection(*map(set, values)))
    at = [[of_run[epoch] for of_run in values] for epoch in epochs]
    color, marker, dashes = style.SERIES[look]
    mean = [fmean(found) for found in at]
    axis.plot(
        epochs, mean, color=color, marker=marker, markevery=max(1, len(epochs) // 10), linestyle=dashes, label=name
    )
    if len(members) > 1:
        std = [spread(found).std or 0.0 for found in at]
        low = [max(0.0, m - s) for m, s in zip(mean, std, strict=True)]
        high = [min(100.0, m + s) for m, s in zip(mean, std, strict=True)]
        axis.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)


def _switch(histories: Sequence[Records]) -> float | None:
    """The epoch at whose beginning the method begins, if it is one for all runs that have one."""
    first = {next((r["epoch"] + 1 for r in records if r.get("regularized")), None) for records in histories} - {None}
    return float(first.pop() or 0) - 0.5 if len(first) == 1 else None

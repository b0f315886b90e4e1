"""The training of one run in one figure, made from its ``history.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.records.curve import read_history
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.records.run_folders import FIGURE

Records = Sequence[dict[str, float]]


def _series(records: Records, key: str) -> tuple[list[float], list[float]]:
    pairs = [(r["epoch"] + 1, r[key]) for r in records if key in r]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _line(axis: Axes, records: Records, key: str, look: int, label: str | None = None) -> None:
    color, marker, dashes = style.SERIES[look]
    x, y = _series(records, key)
    axis.plot(x, y, color=color, marker=marker, markevery=max(1, len(x) // 12), linestyle=dashes, label=label)


def _loss(axis: Axes, records: Records) -> None:
    _line(axis, records, "train_loss", 0, "training")
    _line(axis, records, "val_loss", 1, "validation")
    axis.set(yscale="log", ylabel="cross-entropy (nats)", title="Loss")


def _error(axis: Axes, records: Records) -> None:
    _line(axis, records, "train_error", 0, "training")
    _line(axis, records, "val_error", 1, "validation")
    axis.set(ylabel="error (%)", title="Error")
    axis.set_ylim(bottom=-0.03 * axis.get_ylim()[1])


def _gamma(axis: Axes, records: Records) -> None:
    _line(axis, records, "gamma", 2)
    x, mean = _series(records, "gamma")
    _, std = _series([r for r in records if "gamma" in r], "gamma_std")
    if len(std) == len(mean):
        low, high = [m - s for m, s in zip(mean, std, strict=True)], [m + s for m, s in zip(mean, std, strict=True)]
        axis.fill_between(x, low, high, color=style.GREEN, alpha=0.2, linewidth=0)
    gamma = QUANTITIES["gamma"]
    axis.set(ylabel=gamma.axis, title=f"Metric; {gamma.better}")


def _rate(axis: Axes, records: Records) -> None:
    color, _, _ = style.SERIES[3]
    x, y = _series(records, "lr")
    axis.step(x, y, where="mid", color=color)
    axis.set(yscale="log", ylabel=QUANTITIES["lr"].axis, title="Learning rate")


def _penalty(axis: Axes, records: Records) -> None:
    _line(axis, records, "fisher/penalty", 4)
    axis.set(yscale="log", ylabel=QUANTITIES["fisher/penalty"].axis, title="Penalty")


def _cosine(axis: Axes, records: Records) -> None:
    _line(axis, records, "fisher/grad_cosine", 5)
    axis.set(ylabel=QUANTITIES["fisher/grad_cosine"].axis, title="Gradients of the sub-batches")


def _switch(records: Records) -> float | None:
    """The epoch (counted from 1, at its beginning) of the first regularized step, None without one."""
    regularized = [r["epoch"] + 1 for r in records if r.get("regularized")]
    return regularized[0] - 0.5 if regularized else None


def plot_training(records: Records, path: Path, title: str = "") -> Path:
    """Plot loss, error, learning rate, metric and penalty over the epochs, the switch marked.

    Args:
        records: of :class:`~lightning_fisher.experiment.training.history.History`.
        path: of the PNG.
        title: of the figure.

    Returns:
        The path.
    """
    panels: list[Any] = [_loss, _error]
    panels += [plot for key, plot in (("gamma", _gamma), ("lr", _rate)) if any(key in r for r in records)]
    penalized = (("fisher/penalty", _penalty), ("fisher/grad_cosine", _cosine))
    panels += [plot for key, plot in penalized if any(key in r for r in records)]
    switch, last = _switch(records), max((r["epoch"] for r in records), default=0) + 1
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(panels))
        for axis, plot in zip(axes, panels, strict=True):
            plot(axis, records)
            axis.set_xlabel("epoch")
            axis.set_xlim(0, last + 1)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if switch is not None:
                axis.axvline(switch, color=style.BLACK, linestyle=":", linewidth=1.2, label="regularizer on")
        handles: dict[str, Any] = {}
        for axis in axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        banded = any("gamma_std" in record for record in records)
        note = "Band of the metric: standard deviation over the subsets of training images" if banded else ""
        style.legend(figure, list(handles.values()), list(handles), note)
        style.title(figure, f"How did the training go? {title}" if title else "How did the training go?")
        return style.save(figure, path)


def dashboard(folder: Path, title: str = "") -> Path:
    """Plot the training of a run folder into its ``training.png``."""
    return plot_training(read_history(folder), folder / FIGURE, title or folder.name)

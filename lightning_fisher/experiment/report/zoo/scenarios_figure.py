"""The figure of several scenarios: τ of every measure in each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.report.zoo.judgment import measure_name
from lightning_fisher.experiment.report.zoo.scenarios import Scenario, by_worst

HEIGHT = 0.28  # inches: of a measure
APART = 0.2  # of a line: between the scenarios of a measure


def plot_scenarios(found: Sequence[Scenario], path: Path) -> Path:
    """Plot τ with its interval, a line a measure, the best worst case on top.

    Args:
        found: the scenarios.
        path: of the PNG.
    """
    keys = by_worst(found)
    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(6.4, 0.8 + HEIGHT * len(keys)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        handles, labels = [], []
        for place, one in enumerate(found):
            color, marker, _ = style.SERIES[place % len(style.SERIES)]
            lines = [line for line, key in enumerate(keys) if key in one.judged]
            judged = [one.judged[keys[line]] for line in lines]
            ends = [[_end(j.tau - j.low), _end(j.high - j.tau)] for j in judged]
            heights = [line + APART * (place - (len(found) - 1) / 2) for line in lines]
            handles.append(
                axes.errorbar(
                    [j.tau for j in judged], heights, xerr=np.array(ends).T, fmt=marker, color=color, markersize=3.5,
                    elinewidth=0.8,
                )
            )  # fmt: skip
            labels.append(f"{one.name} (n = {one.fitted})")
        axes.set_yticks(range(len(keys)), [measure_name(key, "baseline") for key in keys])
        axes.set_ylim(len(keys) - 0.4, -0.6)
        axes.axvline(0, color=style.GRAY, linewidth=0.8)
        axes.set(xlim=(-1.02, 1.02), xlabel="Kendall $\\tau$ with the test error, 95 % interval")
        style.title(figure, "Which measure orders the networks of every scenario by test error?")
        style.legend(figure, handles, labels, "Measures by their worst scenario, the best on top")
        return style.save(figure, path)


def _end(length: float) -> float:
    return 0.0 if math.isnan(length) else max(0.0, length)

"""The figure of a zoo: ψ of every measure by option, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.report.zoo.judgment import BASELINES, VARIED, Effect, Judged, measure_label

LIGHT = 0.55  # of |ψ|: from there on text is white


def plot_zoo(done: Sequence[Judged], found: Sequence[Effect], path: Path) -> Path:
    """Plot ψ as colored numbers, measures by their worst case, options by what they do; τ with its interval beside it.

    Args:
        done: the judgments, in order.
        found: the options, in order.
        path: of the PNG.
    """
    options = sorted(found, key=lambda effect: -(effect.ratio if not math.isnan(effect.ratio) else 0.0))
    decisive = [effect.option for effect in options if effect.matters]
    columns = ["worst *", *(f"{VARIED[effect.option]}{' *' if effect.matters else ''}" for effect in options)]
    values = np.array([[one.worst(decisive), *(one.per_option[e.option] for e in options)] for one in done])
    with matplotlib.rc_context(style.RC):
        figure = Figure(figsize=(3.4 + 0.75 * len(columns) + 2.6, 0.9 + 0.21 * len(done)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=[0.75 * len(columns), 2.2], sharey=True)
        left.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        left.grid(False)
        for (line, column), psi in np.ndenumerate(values):
            if not math.isnan(psi):
                color = "white" if abs(psi) > LIGHT else "black"
                left.text(column, line, f"{psi:.2f}", ha="center", va="center", fontsize=7, color=color)
        names = [measure_label(one.key) + (" (baseline)" if one.key in BASELINES else "") for one in done]
        left.set_yticks(range(len(done)), names)
        left.set_xticks(range(len(columns)), columns, rotation=35, ha="left")
        left.xaxis.tick_top()
        left.axvline(0.5, color="white", linewidth=3)
        left.tick_params(length=0)
        places = np.arange(len(done))
        taus = np.array([one.tau for one in done])
        ends = np.array([[one.tau - one.low, one.high - one.tau] for one in done]).T
        right.errorbar(
            taus, places, xerr=np.nan_to_num(np.clip(ends, 0, None)), fmt="o", color=style.BLUE, markersize=3.5,
            elinewidth=1,
        )  # fmt: skip
        right.axvline(0, color=style.GRAY, linewidth=0.8)
        right.set(xlim=(-1, 1), xlabel=r"Kendall $\tau$ over all (95 %)")
        right.tick_params(left=False, labelleft=False)
        right.set_xticks([-1, -0.5, 0, 0.5, 1])
        figure.suptitle(
            f"Which measure orders {max(one.n for one in done)} networks as their test errors do?", fontsize=10
        )
        title = r"$\psi$: networks that differ in one option alone (blue: right, red: wrong); *: the option matters"
        figure.supxlabel(title, fontsize=8)
        return style.save(figure, path)

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
from lightning_fisher.experiment.report.zoo.judgment import VARIED, Effect, Judged, measure_name

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
        figure = Figure(figsize=(2.7 + 0.45 * len(columns) + 1.6, 1.2 + 0.2 * len(done)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=[0.45 * len(columns), 1.5], sharey=True)
        left.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        left.grid(False)
        for (line, column), psi in np.ndenumerate(values):
            if not math.isnan(psi):
                color = "white" if abs(psi) > LIGHT else "black"
                left.text(column, line, style.signed(f"{psi:.2f}"), ha="center", va="center", fontsize=7, color=color)
        fewer = [f", n = {one.n}" if one.n < max(other.n for other in done) else "" for one in done]
        names = [measure_name(one.key, "baseline") + mark for one, mark in zip(done, fewer, strict=True)]
        left.set_yticks(range(len(done)), names)
        left.set_xticks(range(len(columns)), columns, rotation=50, ha="left", rotation_mode="anchor")
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
        right.set(xlim=(-1, 1), xlabel="Kendall $\\tau$ over all,\n95 % interval")
        right.tick_params(left=False, labelleft=False)
        right.set_xticks([-1, 0, 1])
        style.title(figure, f"Which measure orders {max(one.n for one in done)} networks as their test errors do?")
        note = (
            r"Numbers: $\psi$, Kendall's $\tau$ of networks that differ in one option alone (1, blue: always the right "
            "order; −1, red: always the wrong one)\n"
            "*: the option moves the test error by three times its spread over seeds"
        )
        style.legend(figure, [], [], note)
        return style.save(figure, path)

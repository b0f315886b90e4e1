"""The figure of the layers of a metric card: what each contributes to γ̂, and its spectrum."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.scoring.card import Card
from lightning_fisher.experiment.scoring.card_figures import LOG10, decades

MOST = 24  # layers by name; more are drawn by their number


def plot_layers(card: Card, path: Path) -> Path:
    """Plot the share of every layer in γ̂, the mean size of its gradients, and the median of its spectra."""
    layers = card.subsets.layers
    names, places = list(layers), np.arange(len(layers))
    shares = np.array([layer.share.numpy() for layer in layers.values()])
    count = next(iter(layers.values())).log_eigenvalues.shape[1]
    traces = np.array([layer.log_trace.numpy() for layer in layers.values()]) / LOG10 - np.log10(count)
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(3, width=3.4, height=max(3.0, 0.17 * min(len(names), 2 * MOST)))
        axes[0].barh(places, 100 * shares.mean(1), xerr=_spread(100 * shares), color=style.BLUE, height=0.7)
        axes[0].set(xlabel=r"share of $\hat\gamma$ (%)", title=r"What they contribute to $\hat\gamma$")
        axes[1].errorbar(traces.mean(1), places, xerr=_spread(traces), fmt="o", color=style.VERMILION, elinewidth=1)
        axes[1].set(xlabel=r"mean squared gradient, $\mathrm{tr}\,\xi_l / N$", title="How large their gradients are")
        decades(axes[1], vertical=False)
        for axis in axes[:2]:
            if len(names) <= 2 * MOST and axis is axes[1]:
                axis.set_yticks(places, [""] * len(names))
            elif len(names) <= 2 * MOST:
                axis.set_yticks(places, names, fontsize=6 if len(names) > MOST else 8)
            else:
                axis.set_ylabel("layer, in the order of the module")
            axis.invert_yaxis()
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
        for layer, color in zip(layers.values(), colors, strict=True):
            logs = torch.where(torch.isinf(layer.log_eigenvalues), torch.nan, layer.log_eigenvalues) / LOG10
            axes[2].plot(np.arange(1, count + 1), logs.nanmedian(0).values.numpy(), color=color, linewidth=1)
        axes[2].set(xlabel="number, from the largest", ylabel="eigenvalue", title="Their spectra")
        decades(axes[2])
        axes[2].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        beside = figure.add_subplot(2, 2, 4)  # the place of a fourth panel
        beside.axis("off")
        ends = [Line2D([], [], color=color, linewidth=1.5) for color in (colors[0], colors[-1])]
        beside.legend(ends, [f"{names[0]} (first)", f"{names[-1]} (last)"], title="Spectra, in the order of the module",
                      loc="center left", frameon=False)  # fmt: skip
        style.title(figure, f"{card.subject.name}: which layers does $\\hat\\gamma$ come from?")
        style.legend(figure, [], [], f"Mean and standard deviation, spectra: median, of {shares.shape[1]} subsets of "
                                     f"{count} training images")  # fmt: skip
        return style.save(figure, path)


def _spread(values: np.ndarray) -> np.ndarray | None:
    return values.std(axis=1, ddof=1) if values.shape[1] > 1 else None

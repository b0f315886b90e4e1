"""The figures of a metric card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from lightning_fisher.data import LabeledImages
from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.scoring.card import Card
from lightning_fisher.experiment.scoring.gradient_influence import precision_at

LOG10 = math.log(10)
COLUMNS = 6  # of the image grid
BARS = (
    ("gamma_residual", r"residual, $\sum_j 2\ln\Vert\partial\ell_j/\partial q_j\Vert$", style.BLUE, ""),
    ("gamma_sensitivity", r"sensitivity, $\sum_j \ln G_{jj}$", style.GREEN, "..."),
    ("gamma_direction", r"direction, $\ln|C|$", style.ORANGE, "///"),
)


def decades(axis: Axes, vertical: bool = True) -> None:
    """Label an axis that holds base-10 logarithms as powers of ten: they may be beyond the range of float64."""
    one = axis.yaxis if vertical else axis.xaxis
    one.set_major_locator(MaxNLocator(nbins=7, integer=True))
    one.set_major_formatter(FuncFormatter(_power))


def _power(exponent: float, position: int | None = None) -> str:
    """A power of ten; as a number where less than a decade is shown and the exponent is no integer."""
    whole = abs(exponent - round(exponent)) < 1e-6
    return f"$10^{{{exponent:.0f}}}$" if whole else f"{10**exponent:.2g}"


def spectrum_band(axis: Axes, logs: Tensor, look: int, label: str) -> None:
    """Draw eigenvalues over their number: the median of the subsets, and from their least to their largest.

    Args:
        axis: where.
        logs: base-10 logarithms ``[T, N]``, descending; −inf is left out.
        look: of the series.
        label: of the series.
    """
    values = torch.where(torch.isinf(logs), torch.nan, logs).numpy()
    known = ~np.isnan(values).any(axis=0)
    x = np.arange(1, values.shape[1] + 1)[known]
    color, _, dashes = style.SERIES[look]
    axis.fill_between(x, values.min(0)[known], values.max(0)[known], color=color, alpha=0.22, linewidth=0)
    axis.plot(x, np.median(values, axis=0)[known], color=color, linestyle=dashes, label=label)


def _parts(axis: Axes, card: Card) -> None:
    values = {key: card.subsets.values[key].numpy() for key in ("gamma", *(key for key, *_ in BARS))}
    x = np.arange(1, len(values["gamma"]) + 1)
    above, below = np.zeros(len(x)), np.zeros(len(x))
    for key, label, color, hatch in BARS:
        heights = values[key]
        bottom = np.where(heights >= 0, above, below)
        axis.bar(x, heights, bottom=bottom, color=color, width=0.7, hatch=hatch, edgecolor="white", linewidth=0,
                 label=label)  # fmt: skip
        above, below = above + np.clip(heights, 0, None), below + np.clip(heights, None, 0)
    axis.plot(x, values["gamma"], "D", color=style.BLACK, markersize=4, label="sum")
    axis.axhline(float(values["gamma"].mean()), color=style.BLACK, linestyle=":", linewidth=1.2, label=r"$\hat\gamma$")
    axis.axhline(0, color=style.GRAY, linewidth=0.8)
    axis.set(xlabel="subset", ylabel=r"$\ln|\xi|$ (nats)", title=r"What $\hat\gamma$ is made of")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_spectrum(card: Card, path: Path) -> Path:
    """Plot the eigenvalues of ξ and of C over the subsets, and the parts of every subset's ``ln|ξ|``."""
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(3)
        spectrum_band(axes[0], card.subsets.log_eigenvalues / LOG10, 0, "")
        spectrum_band(axes[1], card.subsets.cosine_eigenvalues.clamp_min(0).log10(), 4, "")
        axes[0].set(title=r"Gradients: $\xi = J J^\top$", ylabel="eigenvalue", xlabel="number, from the largest")
        axes[1].set(title=r"Their directions: $C$ (cosines)", ylabel="eigenvalue", xlabel="number, from the largest")
        axes[1].axhline(0, color=style.GRAY, linestyle=":", linewidth=1)
        axes[1].annotate("orthogonal gradients: all 1", (0.99, 0), xycoords=("axes fraction", "data"), xytext=(0, 3),
                         textcoords="offset points", ha="right", color=style.GRAY, fontsize=8)  # fmt: skip
        for axis in axes[:2]:
            decades(axis)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        _parts(axes[2], card)
        beside = figure.add_subplot(2, 2, 4)  # the place of a fourth panel
        beside.axis("off")
        beside.legend(*axes[2].get_legend_handles_labels(), loc="center left", frameon=False)
        style.title(figure, rf"{card.subject.name}: what is $\hat\gamma$ made of?")
        subsets, samples = card.subsets.log_eigenvalues.shape
        note = f"{subsets} subsets of {samples} training images. Eigenvalues: median (line), least to largest (band)"
        style.legend(figure, [], [], note)
        return style.save(figure, path)


def _shown(pixels: Tensor) -> np.ndarray:
    """A uint8 image ``[C, H, W]`` as a picture: gray for one channel, colors for three, else its mean."""
    array = pixels.permute(1, 2, 0).numpy()
    return array if array.shape[2] == 3 else array.mean(axis=2)


def plot_influential(card: Card, images: LabeledImages, path: Path, columns: int = COLUMNS) -> Path:
    """Show the training images with the largest gradients: label, prediction, truth if known, loss, gradient norm.

    Args:
        card: of the network.
        images: the training images, not normalized.
        path: of the PNG.
        columns: images in a row.
    """
    influence, names = card.influence, card.classes
    first = influence.order[: card.top]
    wrong = influence.mislabeled
    pixels, _ = images.__getitems__(influence.positions[first].tolist())
    columns = min(columns, len(first))
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(len(first), columns=columns, width=1.1, height=1.7 if wrong is None else 1.9)
        figure.set_figheight(figure.get_figheight() + 0.9)  # for what stands above and below the images
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.11)  # type: ignore[union-attr, call-arg]
        for place, (axis, i) in enumerate(zip(axes, first.tolist(), strict=True)):
            axis.imshow(_shown(pixels[place]), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
            axis.grid(False)
            replaced = wrong is not None and bool(wrong[i])
            color = style.VERMILION if replaced else style.GRAY
            for spine in axis.spines.values():
                spine.set(visible=True, color=color, linewidth=2.4 if replaced else 0.8)
            axis.set(xticks=[], yticks=[])
            axis.set_title(names[int(influence.given[i])], fontsize=10, fontweight="bold", pad=4)
            lines = [f"predicted {names[int(influence.predicted[i])]}"]
            if wrong is not None:
                lines.append(f"truth {names[int(influence.true[i])]}")
            norm = float(influence.log_norms[i].exp())
            lines.append(f"{float(influence.losses[i]):.2g} · {norm:.2g}")
            axis.set_xlabel("\n".join(lines), fontsize=8, labelpad=3)
        title = (
            f"{card.subject.name}: the {len(first)} largest gradients of {len(influence.log_norms):,} training images"
        )
        style.title(figure, f"{title}\nabove: the label trained with; last line: loss · gradient norm")
        if wrong is not None:
            frame = Rectangle((0, 0), 1, 1, fill=False, edgecolor=style.VERMILION, linewidth=2)
            name = f"label replaced: {int(wrong[first].sum())} of these {len(first)}"
            figure.legend([frame], [name], loc="outside lower center", frameon=False)
        return style.save(figure, path)


def plot_gradients(card: Card, path: Path) -> Path:
    """Plot the gradient norms of all training images: distribution, against the loss, and how well they find labels."""
    influence, wrong = card.influence, card.influence.mislabeled
    groups: Sequence[tuple[str, Tensor, int]]
    if wrong is None:
        differs = influence.predicted != influence.given
        groups = [("predicted as given", ~differs, 0), ("predicted otherwise", differs, 1)]
    else:
        groups = [("label as in the data set", ~wrong, 0), ("label replaced", wrong, 1)]
    norms = (influence.log_norms / LOG10).clamp_min(-300)
    losses = influence.losses.log10().clamp_min(-300)
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(2 if wrong is None else 3)
        edges = np.linspace(float(norms.min()), float(norms.max()) + 1e-9, 41).tolist()
        for label, chosen, look in groups:
            color, marker, _ = style.SERIES[look]
            name = f"{label} ({int(chosen.sum()):,})"
            axes[0].hist(norms[chosen].numpy(), edges, color=color, alpha=0.6, label=name, histtype="stepfilled")
            axes[1].scatter(losses[chosen], norms[chosen], s=9, color=color, marker=marker, alpha=0.5, linewidths=0)
        threshold = float(norms[influence.order[min(card.top, len(norms)) - 1]])
        for axis, line in ((axes[0], axes[0].axvline), (axes[1], axes[1].axhline)):
            line(threshold, color=style.BLACK, linestyle=":", linewidth=1.2)
            decades(axis, vertical=axis is axes[1])
        decades(axes[1], vertical=False)
        axes[0].set(xlabel=r"gradient norm $\Vert\nabla\ell\Vert$", ylabel="training images", yscale="log")
        axes[0].set_ylim(bottom=0.7)
        axes[0].set_title("How they are distributed")
        axes[1].set(xlabel="loss (nats)", ylabel=r"gradient norm $\Vert\nabla\ell\Vert$", title="Against the loss")
        if wrong is not None:
            _precision(axes[2], card, wrong)
        question = "which training images have" if wrong is None else "do replaced labels have"
        style.title(figure, f"{card.subject.name}: {question} large gradients?")
        note = f"{len(norms):,} training images; dotted: the {card.top} largest norms"
        style.legend(figure, *axes[0].get_legend_handles_labels(), note)
        return style.save(figure, path)


def _precision(axis: Axes, card: Card, wrong: Tensor) -> None:
    influence = card.influence
    k = np.arange(1, len(wrong) + 1)
    for look, (name, scores) in enumerate((("gradient norm", influence.log_norms), ("loss", influence.losses))):
        color, _, dashes = style.SERIES[look + 2]
        axis.plot(k, precision_at(scores, wrong).numpy(), color=color, linestyle=dashes, label=f"by {name}")
    best = np.minimum(1.0, int(wrong.sum()) / k)
    axis.plot(k, best, color=style.GRAY, linewidth=0.8, label="best possible")
    axis.axhline(float(wrong.double().mean()), color=style.GRAY, linestyle=":", linewidth=1.2, label="chance")
    axis.set(xscale="log", xlabel="images looked at, largest first", ylabel="share replaced", ylim=(0, 1.04))
    axis.set_title("How many of the largest were replaced")
    beside = axis.figure.add_subplot(2, 2, 4)  # the place of a fourth panel
    beside.axis("off")
    beside.legend(*axis.get_legend_handles_labels(), loc="center left", frameon=False, title="Left: in the order")

"""Two networks side by side: their cards, and the paired differences."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from lightning_fisher.experiment.display import plot_style as style
from lightning_fisher.experiment.display.terminal import WIDTH, print_table, shown
from lightning_fisher.experiment.records.quantities import METRICS, QUANTITIES
from lightning_fisher.experiment.records.result import plain, write_atomically
from lightning_fisher.experiment.records.run_folders import CARD
from lightning_fisher.experiment.report.paired_difference import LEVEL, Difference, paired_difference
from lightning_fisher.experiment.report.tables import markdown
from lightning_fisher.experiment.scoring import card_page
from lightning_fisher.experiment.scoring.card import DATA_NAME as CARD_DATA
from lightning_fisher.experiment.scoring.card import FORMAT, Card, percent, spread_of
from lightning_fisher.experiment.scoring.card_figures import LOG10, decades, spectrum_band

FILE_NAME = "comparison.md"
DATA_NAME = "comparison.json"
UNEQUAL_LOSSES = 1.5  # a larger factor between the training losses: γ̂ compares losses, not minima


def differences(first: Card, second: Card) -> dict[str, Difference]:
    """Every quantity's paired difference, second less first: errors and losses over images, metrics over subsets."""
    found = {}
    for name, one, other in (("test", first.test, second.test), ("train", first.train, second.train)):
        found[f"{name}_error"] = paired_difference(100 * one.wrong.double(), 100 * other.wrong.double())
        found[f"{name}_loss"] = paired_difference(one.losses, other.losses)
    for key, values in first.subsets.values.items():
        found[key] = paired_difference(values, second.subsets.values[key])
    return found


def headings(first: Card, second: Card) -> list[str]:
    """The headings of the comparison's table."""
    return ["lower is better", "1", "2", f"2 − 1 [{100 * LEVEL:.0f} %]", "over"]


def table(first: Card, second: Card) -> list[list[str]]:
    """The lines of the comparison: quantity, both values, the difference with its interval, over what."""
    found = differences(first, second)
    lines = []
    for name in ("test", "train"):
        evaluations = [getattr(card, name) for card in (first, second)]
        n = f"{len(evaluations[0].losses):,} images"
        errors = [f"{percent(e.wrong):.2f}" for e in evaluations]
        error, loss = QUANTITIES[f"{name}_error"], QUANTITIES[f"{name}_loss"]
        lines.append([error.heading, *errors, _difference(found[error.key], error.signed), n])
        losses = [f"{float(e.losses.mean()):.4g}" for e in evaluations]
        lines.append([loss.heading, *losses, _difference(found[loss.key], loss.signed), n])
    over = card_page.over_subsets(first)
    for quantity in first.measured():
        spreads = [spread_of(card.subsets.values[quantity.key]) for card in (first, second)]
        values = [quantity.text(spread.mean, spread.std) for spread in spreads]
        lines.append([quantity.heading, *values, _difference(found[quantity.key], quantity.signed_detail), over])
    return lines


def _difference(found: Difference, form: str) -> str:
    if math.isnan(found.low):
        return form.format(found.mean)
    mark = " *" if found.clear else ""
    return f"{form.format(found.mean)} [{form.format(found.low)}, {form.format(found.high)}]{mark}"


def notes(first: Card, second: Card) -> list[str]:
    """What to mind when reading the comparison."""
    found = [
        "Intervals are over the same subsets and images for both (Student's, of the paired differences; * leaves out "
        "zero). They do not cover the seeds of the trainings: for that, compare several runs of each.",
    ]
    losses = sorted(float(card.train.losses.mean()) for card in (first, second))
    if first.metric["logit_norm"] is None and losses[1] > UNEQUAL_LOSSES * losses[0]:
        found.append(
            f"The training losses differ ({losses[0]:.3g} and {losses[1]:.3g}), and γ̂ falls with the loss: "
            "compare γ̂ at equal outputs, which is in the table too."
        )
    wrong, n = [int(card.train.wrong.sum()) for card in (first, second)], len(first.train.wrong)
    if max(wrong) > 0:
        found.append(
            f"Of {n:,} training images {wrong[0]:,} and {wrong[1]:,} are not fitted: γ̂ is defined for minima that fit "
            "their labels; images that are misfitted have larger gradients and outweigh the others."
        )
    if first.subject.network != second.subject.network or first.parameters != second.parameters:
        found.append("The networks differ in kind: γ̂ orders minima of one network, less surely those of two.")
    return found


def plot_comparison(first: Card, second: Card, path: Path) -> Path:
    """Plot both spectra, and every metric with a line from each subset of the one to the same of the other."""
    compared = [quantity for quantity in first.measured() if quantity.key in METRICS]
    found = differences(first, second)
    names = [f"1  {first.subject.name}", f"2  {second.subject.name}"]
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(2 + len(compared), columns=3, width=2.7, height=2.6)
        for look, (card, name) in enumerate(zip((first, second), names, strict=True)):
            spectrum_band(axes[0], card.subsets.log_eigenvalues / LOG10, look, name)
            spectrum_band(axes[1], card.subsets.cosine_eigenvalues.clamp_min(0).log10(), look, name)
        axes[0].set(title=r"Eigenvalues of $\xi$", xlabel="number, from the largest", ylabel="eigenvalue")
        axes[1].set(title=r"Eigenvalues of $C$ (cosines)", xlabel="number, from the largest")
        for axis in axes[:2]:
            decades(axis)
        for axis, quantity in zip(axes[2:], compared, strict=True):
            pairs = np.stack([card.subsets.values[quantity.key].numpy() for card in (first, second)])
            better, worse = pairs[1] < pairs[0], pairs[1] >= pairs[0]
            for chosen, color in ((better, style.GREEN), (worse, style.GRAY)):
                axis.plot([1, 2], pairs[:, chosen], color=color, linewidth=0.8, alpha=0.7)
            for look in range(2):
                color, marker, _ = style.SERIES[look]
                axis.plot(np.full(pairs.shape[1], look + 1), pairs[look], marker, color=color, markersize=4, alpha=0.8)
            if bool((pairs > 0).all()) and pairs.max() / pairs.min() > 30:
                axis.set_yscale("log")
            axis.set_title(f"{quantity.axis}\n{style.signed(_difference(found[quantity.key], quantity.signed))}")
            axis.set(xticks=[1, 2], xlim=(0.6, 2.4), xlabel="network")
            axis.grid(False, axis="x")
        handles, labels = axes[0].get_legend_handles_labels()
        handles += [Line2D([], [], color=color, linewidth=0.8) for color in (style.GREEN, style.GRAY)]
        labels += ["a subset: 2 is smaller", "a subset: 2 is larger"]
        style.title(figure, "Do the two networks differ?")
        subsets = first.subsets.log_eigenvalues.shape[0]
        note = (
            f"Lines and marks: {subsets} subsets of training images, the same for both; spectra: median and range. "
            f"Above a panel: 2 − 1 [{100 * LEVEL:.0f} % interval], * leaves out 0"
        )
        style.legend(figure, handles, labels, note)
        return style.save(figure, path)


def write_comparison(first: Card, second: Card, folder: Path) -> Path:
    """Write the page, the numbers and the figure of a comparison; the cards themselves lie in folders beside them."""
    figure = plot_comparison(first, second, folder / "comparison.png")
    folders = [f"{i}-{card.subject.name}" for i, card in enumerate((first, second), start=1)]
    blocks = [
        "# Two networks compared",
        "\n".join(f"{i}. [{card.subject.name}]({own}/{CARD}): {' '.join(card_page.about(card)[:1])}"
                  for i, (card, own) in enumerate(zip((first, second), folders, strict=True), start=1)),
        "\n".join(f"- {sentence}" for sentence in card_page.about(first)[1:]),
        markdown(headings(first, second), table(first, second)),
        "\n".join(f"- {note}" for note in notes(first, second)),
        f"![comparison]({figure.name})",
        f"Above each panel: 2 − 1 with its {100 * LEVEL:.0f} % interval.",
        "## Made by",
        card_page.made_by(second.made),
    ]  # fmt: skip
    write_atomically(folder / FILE_NAME, "\n\n".join(blocks) + "\n")
    found: dict[str, Any] = {key: one._asdict() for key, one in differences(first, second).items()}
    data = {
        "format": FORMAT,
        "names": [first.subject.name, second.subject.name],
        "cards": [f"{own}/{CARD_DATA}" for own in folders],
        "level": LEVEL,
        "differences": found,
        "notes": notes(first, second),
    }
    write_atomically(folder / DATA_NAME, json.dumps(plain(data), indent=1) + "\n")
    return figure


def print_comparison(first: Card, second: Card, folder: Path) -> None:
    """Print the comparison's table, what to mind, and where it is."""
    print_table(headings(first, second), table(first, second))
    for i, card in enumerate((first, second), start=1):
        print(f"{i}  {card.subject.name}")
    for note in notes(first, second):
        print(textwrap.fill(note, WIDTH))
    for name in (FILE_NAME, "comparison.png"):
        print(f"comparison  {shown(folder / name)}")
    print(flush=True)

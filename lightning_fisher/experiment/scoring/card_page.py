"""The metric card in words: its table, what the figures show, and the Markdown page of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.tables import markdown
from lightning_fisher.experiment.scoring.card import Card, percent, spread_of
from lightning_fisher.experiment.scoring.layers.words import layer_reading, layer_table

HEADINGS = ("lower is better", "mean ± std", "over")


def table(card: Card) -> list[list[str]]:
    """The lines of the card's table: quantity, mean ± std, over what."""
    lines = []
    for name, evaluation in (("test", card.test), ("train", card.train)):
        wrong, n = int(evaluation.wrong.sum()), len(evaluation.wrong)
        error, loss = QUANTITIES[f"{name}_error"], QUANTITIES[f"{name}_loss"]
        lines.append([error.heading, error.text(percent(evaluation.wrong)), f"{wrong:,} of {n:,} images"])
        lines.append([loss.heading, f"{float(evaluation.losses.mean()):.4g}", f"{n:,} images"])
    over = over_subsets(card)
    for quantity in card.measured():
        found = spread_of(card.subsets.values[quantity.key])
        lines.append([quantity.heading, quantity.text(found.mean, found.std), over])
    return lines


def over_subsets(card: Card) -> str:
    """What the metrics are over: ``10 subsets of 100``."""
    count = len(card.subsets.ranks)
    return f"{count} subset{'s' if count > 1 else ''} of {card.metric['subset_size']}"


def about(card: Card) -> list[str]:
    """What the card is of, a sentence each."""
    subject, data = card.subject, card.subject.data
    trained = "" if subject.epochs is None else f", trained for {subject.epochs} epochs"
    weights = "weights as the constructor makes them"
    if subject.checkpoint is not None:
        weights = f"weights `{subject.checkpoint}` (SHA-256 {str(subject.digest)[:12]})"
    images = f"{data.name}: {len(card.train.losses):,} training and {len(card.test.losses):,} test images"
    extra = len(card.influence.given) - len(card.train.losses)
    if extra > 0 and data.confusion_size:
        images += f", {data.confusion_size:,} further training images with random labels"
    if data.label_noise:
        images += f", {100 * data.label_noise:g} % of the training labels replaced"
    options = ", ".join(f"{key} {value}" for key, value in card.metric.items() if value is not None)
    return [
        f"Network: {subject.network} ({card.parameters:,} parameters{trained}); {weights}.",
        f"Images: {images}.",
        f"Metrics: {options}.",
    ]


def reading(card: Card) -> list[str]:
    """What the figures show, in sentences."""
    logs = card.subsets.log_eigenvalues
    finite = torch.where(torch.isneginf(logs), torch.nan, logs)
    decades = float((finite[:, 0] - torch.nanquantile(finite, 0.0, dim=1)).mean()) / math.log(10)
    cosines = card.subsets.cosine_eigenvalues
    smallest = cosines.clamp_min(0).amin(1)
    sentences = [
        f"The eigenvalues of ξ span {decades:.1f} decades; those of the cosine Gram matrix C, the same gradients at "
        f"unit length, {float((cosines[:, 0] / smallest).log10().mean()):.1f}. γ̂ is the sum of the logarithms of the "
        "former: of the logarithms of the squared norms (residual and sensitivity), and of those of the latter "
        "(direction). The residual says how far the losses went down; γ̂ without it, at equal outputs, is the sum of "
        "the other two.",
    ]
    ranks, size = card.subsets.ranks, logs.shape[1]
    if int(ranks.min()) < size:
        sentences.append(
            f"ξ is singular: rank {int(ranks.min())} to {int(ranks.max())} of {size}. γ̂ counts the non-zero "
            "eigenvalues only and is not comparable with a value at full rank."
        )
    return [*sentences, fit(card)]


def fit(card: Card) -> str:
    """Whether the network fits its labels, as the theory of γ̂ supposes, in a sentence."""
    wrong, n = int(card.train.wrong.sum()), len(card.train.wrong)
    if wrong == 0:
        return f"All {n:,} training images are fitted: γ̂ is that of a minimum which fits its labels."
    verb = "is" if wrong == 1 else "are"
    return (
        f"{wrong:,} of {n:,} training images {verb} not fitted ({percent(card.train.wrong):.2f} %), so γ̂ is not that "
        "of a minimum which fits its labels: images that it misfits have larger gradients and outweigh the others."
    )


def influence_reading(card: Card) -> list[str]:
    """How well replaced labels are found, in sentences."""
    found = card.influence.summary(card.top)
    shown, searched = len(found["top"]), found["searched"]
    sentences = [f"The {shown} largest of {searched:,} per-sample gradients of the loss."]
    if "precision" in found:
        hits, wrong = round(found["precision"] * shown), found["mislabeled"]
        sentences.append(
            f"Of the {shown}, {hits} have a replaced label (precision {found['precision']:.2f}; {wrong:,} of all "
            f"{searched:,} have: chance {wrong / searched:.2f}). A replaced label comes before a right one with "
            f"probability {found['auc_gradient_norm']:.3f} by gradient norm, {found['auc_loss']:.3f} by loss (AUC)."
        )
    return sentences


def to_markdown(card: Card, figures: list[Path]) -> str:
    """The card as a Markdown page: the table, the figures, the influential images, what it was made with."""
    spectrum, layers, influential, gradients = (f"![{figure.stem}]({figure.name})" for figure in figures)
    found = card.influence.summary(card.top)["top"]
    rows = [
        [
            str(one["position"]),
            card.classes[one["given"]],
            card.classes[one["predicted"]],
            *([card.classes[one["true"]]] if card.influence.mislabeled is not None else []),
            f"{one['loss']:.3g}",
            f"{one['gradient_norm']:.3g}",
        ]
        for one in found
    ]
    true = ["true label"] if card.influence.mislabeled is not None else []
    headings = ["training image", "given label", "predicted", *true, "loss", "gradient norm"]
    blocks = [
        f"# Metric card: {card.subject.name}",
        "\n".join(f"- {sentence}" for sentence in about(card)),
        markdown(HEADINGS, table(card)),
        "Compare at equal subset size only, networks of one architecture: by the first two metrics, which don't follow "
        "the training loss as γ̂ does; by γ̂ at like training losses only.",
        "## Spectrum",
        spectrum,
        " ".join(reading(card)),
        "## Layers",
        layers,
        " ".join(layer_reading(card)),
        layer_table(card),
        "## Most influential training images",
        influential,
        gradients,
        " ".join(influence_reading(card)),
        markdown(headings, rows),
        "## Made by",
        made_by(card.made),
    ]
    return "\n\n".join(blocks) + "\n"


def made_by(made: dict[str, Any]) -> str:
    """Commit, versions, hardware and seconds in a sentence."""
    versions, hardware = made["versions"], made["hardware"]
    commit = str(made["commit"])[:10] + (" (modified)" if made["modified"] else "")
    device = hardware["cpu"] if hardware["device"] == "cpu" else hardware["device"]
    return f"commit {commit}; torch {versions['torch']}; {device}; {made['metric_seconds']:.1f} s of measuring"

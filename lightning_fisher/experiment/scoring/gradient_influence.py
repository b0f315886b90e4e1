"""Which training images pull hardest at the weights: the largest gradients, candidates for wrong labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from lightning_fisher.data import LabeledImages, Normalization
from lightning_fisher.experiment.display.terminal import track
from lightning_fisher.experiment.scoring.subset_metrics import Evaluation, evaluate, fetch
from lightning_fisher.functional import log_gradient_norms

CHUNK = 50  # images whose gradients are in memory at a time


@dataclass
class Influence:
    """The gradient norms of n training images, and what else is known about them.

    Attributes:
        positions: of the images in the training set ``[n]``.
        log_norms: ``ln‖∇ℓ‖`` ``[n]``.
        losses: cross-entropy in nats ``[n]``.
        given: the labels that were trained with ``[n]``.
        predicted: the network's classes ``[n]``.
        true: the labels of the data set, before label noise and confusion ``[n]``.
    """

    positions: Tensor
    log_norms: Tensor
    losses: Tensor
    given: Tensor
    predicted: Tensor
    true: Tensor

    @property
    def mislabeled(self) -> Tensor | None:
        """Which labels were replaced; None where none was, so that nothing is known about wrong ones."""
        wrong = self.given != self.true
        return wrong if bool(wrong.any()) else None

    @property
    def order(self) -> Tensor:
        """The images by gradient norm, the largest first."""
        return self.log_norms.argsort(descending=True, stable=True)

    def summary(self, top: int) -> dict[str, Any]:
        """The first ``top`` images one by one and, where labels were replaced, how well they are found.

        ``precision`` is the share of replaced labels among the first ``top``; ``auc`` the probability that a replaced
        label comes before a right one, by gradient norm and by loss.
        """
        first = self.order[:top]
        found: dict[str, Any] = {
            "searched": len(self.log_norms),
            "top": [
                {
                    "position": int(self.positions[i]),
                    "given": int(self.given[i]),
                    "predicted": int(self.predicted[i]),
                    "true": int(self.true[i]),
                    "loss": float(self.losses[i]),
                    "gradient_norm": float(self.log_norms[i].exp()),
                }
                for i in first.tolist()
            ],
        }
        wrong = self.mislabeled
        if wrong is not None:
            found |= {
                "mislabeled": int(wrong.sum()),
                "precision": float(wrong[first].double().mean()),
                "auc_gradient_norm": auc(self.log_norms, wrong),
                "auc_loss": auc(self.losses, wrong),
            }
        return found


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half.

    Args:
        scores: ``[n]``.
        positive: bool ``[n]``.

    Returns:
        From 0 to 1; ``nan`` where there is no positive or no negative.
    """
    above = int(positive.sum())
    rest = len(positive) - above
    if above == 0 or rest == 0:
        return float("nan")
    ranks = rankdata(scores.numpy())  # ties share the mean of their ranks
    return float((ranks[positive.numpy()].sum() - above * (above + 1) / 2) / (above * rest))  # Mann and Whitney's U


def precision_at(scores: Tensor, positive: Tensor) -> Tensor:
    """The share of positives among the k largest scores, for every k from 1 to n, float64 ``[n]``."""
    hits = positive[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    return hits / torch.arange(1, len(hits) + 1, dtype=torch.float64)


def training_images(clean: LabeledImages, trained: LabeledImages) -> LabeledImages:
    """All images that were trained on, confusion set included, not augmented."""
    return LabeledImages(clean.source, trained.indices, trained.labels)


def measure_influence(
    net: nn.Module,
    images: LabeledImages,
    normalization: Normalization,
    *,
    evaluation: Evaluation | None,
    samples: int | None,
    seed: int,
    batch_size: int,
) -> Influence:
    """Gradient norms of the training images; memory that of one chunk whatever their number.

    Args:
        net: the network.
        images: the training images, not augmented, with the labels that were trained with.
        normalization: of the images.
        evaluation: of the same images, if there is one already.
        samples: how many are searched, drawn at random; None for all.
        seed: of that draw.
        batch_size: images in an evaluation pass.
    """
    positions = torch.arange(len(images))
    if samples is not None and samples < len(images):
        generator = torch.Generator().manual_seed(seed)
        positions = torch.randperm(len(images), generator=generator)[:samples].sort().values
    part = LabeledImages(images.source, images.indices[positions], images.labels[positions])
    if evaluation is None:
        evaluation = evaluate(net, part, normalization, batch_size, "losses of the training images")
        losses, predicted = evaluation.losses, evaluation.predicted
    else:
        losses, predicted = evaluation.losses[positions], evaluation.predicted[positions]
    norms = [
        log_gradient_norms(net, *fetch(part, chunk, normalization, net), chunk_size=CHUNK).cpu()
        for chunk in track(torch.arange(len(part)).split(CHUNK), "gradients of the training images")
    ]
    return Influence(positions, torch.cat(norms), losses, part.labels, predicted, images.source.labels[part.indices])

"""Scores of how suspicious the label of each sample is, and a ranking by them."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_fisher.arguments import require_choice

SCORES = ("gradient_norm", "loss", "tracin")


@dataclass(frozen=True)
class LabelScores:
    """What a training said of n samples, measured at T times.

    Args:
        given_labels: the labels trained with, int64 ``[n]``.
        log_norms: ``ln‖∇_w ℓ(x_j, y_j; w_t)‖₂``, float64 ``[T, n]``.
        losses: cross-entropy in nats, ``[T, n]``.
        probabilities: the network's, averaged over the T times as `weighted_mean` does, ``[n, K]``.
        learning_rates: at the T times, ``[T]``.
    """

    given_labels: Tensor
    log_norms: Tensor
    losses: Tensor
    probabilities: Tensor
    learning_rates: Tensor

    def score(self, kind: str = "gradient_norm") -> Tensor:
        """How suspicious each label is; larger is more.

        Means over time are weighted by the learning rate η_t: what a network learns late, at a small one, is mostly the
        labels by heart, wrong ones among them.

        - ``"gradient_norm"``: the mean of ``ln‖∇ℓ‖`` (GraNd, Paul et al. 2021, over a training instead of at its
          beginning).
        - ``"loss"``: the mean of the loss, which needs no gradients (as Pleiss et al. 2020, who use margins).
        - ``"tracin"``: self-influence, ``ln Σ_t η_t ‖∇ℓ(w_t)‖²`` (TracInCP of a sample on itself, Pruthi et al. 2020).

        Args:
            kind: one of these.

        Returns:
            ``[n]``, float64.

        Raises:
            ValueError: if ``kind`` is none of them.
        """
        require_choice("kind", kind, SCORES)
        if kind == "gradient_norm":
            return weighted_mean(self.log_norms, self.learning_rates)
        if kind == "loss":
            return weighted_mean(self.losses, self.learning_rates)
        return torch.logsumexp(self.learning_rates.double().log()[:, None] + 2 * self.log_norms, 0)

    @property
    def predicted_labels(self) -> Tensor:
        """The class with the largest probability on average over the training, int64 ``[n]``.

        At the end of a training a large network predicts the labels it was given, wrong ones among them.
        """
        return self.probabilities.argmax(1)

    def ranking(self, kind: str = "gradient_norm") -> Tensor:
        """The samples from the most to the least suspicious, int64 ``[n]``.

        Args:
            kind: see `score`.
        """
        return self.score(kind).argsort(descending=True, stable=True)

    def to_csv(self, path: str | Path, kind: str = "gradient_norm", files: Sequence[str] | None = None) -> None:
        """Write a line per sample, the most suspicious first.

        ``index`` in the dataset, ``file`` if given, ``given_label``, ``predicted_label`` (the suggestion), ``score``,
        ``label_quality`` and ``is_label_issue``. The names and meanings are those of cleanlab's tables of label issues:
        ``label_quality`` is from 0 (worst) to 1 and here the rank divided by n − 1; ``is_label_issue`` is whether the
        given label is another than the predicted one.

        Args:
            path: of the file.
            kind: the score: see `score`.
            files: the names of the n samples.
        """
        score, predicted = self.score(kind), self.predicted_labels
        order = self.ranking(kind).tolist()
        last = max(1, len(order) - 1)
        names = ["index", *(["file"] if files is not None else []), "given_label", "predicted_label", "score"]
        target = Path(path)
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")  # renamed when it is whole
        with open(aside, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "label_quality", "is_label_issue"])
            for rank, i in enumerate(order):
                given, suggested = int(self.given_labels[i]), int(predicted[i])
                named = [files[i]] if files is not None else []
                values = [f"{float(score[i]):.6g}", f"{rank / last:.6f}", given != suggested]
                writer.writerow([i, *named, given, suggested, *values])
        os.replace(aside, target)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """``Σ_t η_t v_t / Σ_t η_t``; the plain mean where all weights are zero.

    Args:
        values: ``[T, …]``.
        weights: η, ``[T]``, not negative.

    Returns:
        ``[…]``, float64.
    """
    used = weights > 0 if bool((weights > 0).any()) else torch.ones_like(weights, dtype=torch.bool)
    share = (weights[used].double() if bool((weights > 0).any()) else torch.ones(len(weights))).double()
    share = share / share.sum()
    return torch.einsum("t,t...->...", share, values[used].double())  # zero times −inf would be nan


def roc_auc(scores: Tensor, wrong: Tensor) -> float:
    """Area under the ROC curve: the probability that a wrong label scores above a right one, ties counting half.

    Args:
        scores: ``[n]``.
        wrong: which labels are known to be wrong, bool ``[n]``.

    Returns:
        From 0 to 1; 0.5 is chance.

    Raises:
        ValueError: if all labels are wrong, or none is.

    Example:
        >>> import torch
        >>> from lightning_fisher.label_errors import roc_auc
        >>> roc_auc(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True]))
        0.5
    """
    if bool(wrong.all()) or not bool(wrong.any()):
        raise ValueError("Expected argument `wrong` to hold wrong and right labels, but got one kind only.")
    # By ranks: torchmetrics applies a sigmoid to what is outside of 0 to 1, in which large scores would tie.
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    return float(binary_auroc(ranks / ranks.max().clamp(min=1), wrong.long()))

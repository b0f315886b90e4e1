"""Other losses than the cross-entropy in the classifier's training step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.arguments import require_choice, require_non_negative, require_positive
from lightning_fisher.functional import flat_minimum_penalty, generalized_cross_entropy, large_margin_loss
from lightning_fisher.functional.penalties.generalized_cross_entropy import require_q
from lightning_fisher.module import Criterion, ImageClassifier


class UseLargeMarginLoss(Callback):
    """Train with `large_margin_loss` at the input, in place of the cross-entropy (Elsayed et al. 2018).

    Args:
        gamma: Largest distance to the boundary that is asked for, γ > 0.
        norm: Of the distance: 1, 2 or ``"inf"``.
        scores: ``"probabilities"`` or ``"logits"``.

    Raises:
        ValueError: If an argument doesn't fit.
    """

    def __init__(self, gamma: float = 1.0, norm: float | str = 2.0, scores: str = "logits") -> None:
        require_positive("gamma", gamma)
        if norm not in (1, 2, "inf"):
            raise ValueError(f"Expected argument `norm` to be 1, 2 or inf, but got {norm!r}.")
        require_choice("scores", scores, ("probabilities", "logits"))
        self.gamma, self.norm, self.scores = float(gamma), float(norm), scores

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exchange the loss."""
        _exchange(pl_module, self.criterion, "large_margin")

    def criterion(self, module: ImageClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss of a batch."""
        images = images.detach().requires_grad_()
        with module.eagerly():  # compiled graphs are differentiated once
            logits = module(images)
        loss = large_margin_loss(logits, labels, images, gamma=self.gamma, norm=self.norm, scores=self.scores)
        return logits, loss


class UseGeneralizedCrossEntropy(Callback):
    """Train with `generalized_cross_entropy`, in place of the cross-entropy (Zhang & Sabuncu 2018).

    Args:
        q: From above 0, nearly the cross-entropy, to 1, half the mean absolute error.

    Raises:
        ValueError: If q doesn't fit.
    """

    def __init__(self, q: float = 0.7) -> None:
        require_q(q)
        self.q = float(q)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exchange the loss."""
        _exchange(pl_module, self.criterion, "generalized_cross_entropy")

    def criterion(self, module: ImageClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss of a batch."""
        logits = module(images)
        return logits, generalized_cross_entropy(logits, labels, q=self.q)


def _exchange(module: LightningModule, criterion: Criterion, name: str) -> None:
    assert isinstance(module, ImageClassifier)
    if module.label_smoothing > 0:
        raise ValueError(
            f"Expected no label smoothing with reg={name}, which has no cross-entropy, but got "
            f"model.label_smoothing={module.label_smoothing:g}."
        )
    module.criterion = criterion


class UseFlatMinimumPenalty(Callback):
    """Train with the cross-entropy and λ times the mean of `flat_minimum_penalty` (Hochreiter & Schmidhuber 1997).

    For small networks without batch-norm.

    Args:
        weight: λ ≥ 0.

    Raises:
        ValueError: If an argument or the network doesn't fit.
    """

    def __init__(self, weight: float = 1e-5) -> None:
        require_non_negative("weight", weight)
        self.weight = float(weight)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exchange the loss; refuse networks whose samples interact, and large ones."""
        assert isinstance(pl_module, ImageClassifier)
        norms = [m for m in pl_module.net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        if norms:
            raise ValueError(
                "Expected a network without batch-norm for reg=flat_minimum_search, but got "
                f"{type(norms[0]).__name__}; choose model=mlp."
            )
        pl_module.criterion = self.criterion

    def criterion(self, module: ImageClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss of a batch."""
        logits = module(images)
        loss: Any = F.cross_entropy(logits, labels, label_smoothing=module.label_smoothing)
        if self.weight > 0:
            loss = loss + self.weight * flat_minimum_penalty(module.net, images)
        return logits, loss

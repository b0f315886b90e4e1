"""The metric card of one network: everything that was measured, and as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_fisher.experiment.records.quantities import (
    FIRST,
    HESSIAN_METRICS,
    MEASURES,
    METRICS,
    QUANTITIES,
    Quantity,
)
from lightning_fisher.experiment.report.rows import Spread
from lightning_fisher.experiment.scoring.gradient_influence import Influence
from lightning_fisher.experiment.scoring.network import Subject
from lightning_fisher.experiment.scoring.subset_metrics import TOP, Evaluation, SubsetMeasurement

DATA_NAME = "card.json"
FORMAT = 1


@dataclass
class Card:
    """Everything that was measured of a network.

    Attributes:
        subject: the network.
        classes: their names.
        test: of the test images.
        train: of the clean training images, with the labels that were trained with.
        subsets: the metrics.
        influence: the gradients of all training images.
        metric: the options of the metrics.
        top: how many influential images are shown.
        made: versions, commit, hardware, seconds.
    """

    subject: Subject
    classes: list[str]
    test: Evaluation
    train: Evaluation
    subsets: SubsetMeasurement
    influence: Influence
    metric: dict[str, Any]
    top: int
    made: dict[str, Any]

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.subject.net.parameters() if p.requires_grad)

    def measured(self) -> list[Quantity]:
        """The metrics that were measured, in the order of the table."""
        keys = dict.fromkeys((*FIRST, *METRICS, *HESSIAN_METRICS, *MEASURES))
        return [QUANTITIES[key] for key in keys if key in self.subsets.values]

    def quantities(self) -> dict[str, float]:
        """Losses, errors and metrics by the names that rows use, with the spreads of the metrics."""
        found = {}
        for name, evaluation in (("train", self.train), ("test", self.test)):
            found[f"{name}_loss"] = float(evaluation.losses.mean())
            found[f"{name}_error"] = percent(evaluation.wrong)
            if len(self.classes) > TOP:
                found[f"{name}_error_top5"] = percent(evaluation.wrong_top5)
        for key, values in self.subsets.values.items():
            found[key] = float(values.mean())
            found[f"{key}_std"] = float(values.std()) if len(values) > 1 else math.nan
        return found


def percent(wrong: Tensor) -> float:
    """The share of true entries in per cent."""
    return 100.0 * float(wrong.double().mean())


def spread_of(values: Tensor) -> Spread:
    """Mean, sample standard deviation and number of values."""
    return Spread(float(values.mean()), float(values.std()) if len(values) > 1 else None, len(values))


def to_json(card: Card) -> dict[str, Any]:
    """The card as plain values: every number of the page, and every subset's."""
    subject = card.subject
    return {
        "format": FORMAT,
        "name": subject.name,
        "network": subject.network,
        "parameters": card.parameters,
        "checkpoint": str(subject.checkpoint) if subject.checkpoint is not None else None,
        "sha256": subject.digest,
        "epochs": subject.epochs,
        "metric": card.metric,
        **card.quantities(),
        "subsets": {key: values.tolist() for key, values in card.subsets.values.items()},
        "ranks": card.subsets.ranks.tolist(),
        "log_eigenvalues": card.subsets.log_eigenvalues.tolist(),
        "cosine_eigenvalues": card.subsets.cosine_eigenvalues.tolist(),
        "layers": {
            name: {
                "parameters": layer.parameters,
                "share": layer.share.tolist(),
                "log_trace": layer.log_trace.tolist(),
                "log_det": layer.log_det.tolist(),
                "ranks": layer.ranks.tolist(),
                "log_eigenvalues": layer.log_eigenvalues.tolist(),
            }
            for name, layer in card.subsets.layers.items()
        },
        "influence": card.influence.summary(card.top),
        "classes": card.classes,
        **card.made,
    }

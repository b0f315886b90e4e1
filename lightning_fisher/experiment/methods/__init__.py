"""The methods under `reg` that are no callback of the library: another loss, layer, optimizer, or an average."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.experiment.methods.averaging import AveragedWeights
    from lightning_fisher.experiment.methods.layers import UseGhostBatchNorm
    from lightning_fisher.experiment.methods.losses import (
        UseFlatMinimumPenalty,
        UseGeneralizedCrossEntropy,
        UseLargeMarginLoss,
    )
    from lightning_fisher.experiment.methods.optimizers import UseEntropySGD, UsePathSGD

__all__ = [
    "AveragedWeights",
    "UseEntropySGD",
    "UseFlatMinimumPenalty",
    "UseGeneralizedCrossEntropy",
    "UseGhostBatchNorm",
    "UseLargeMarginLoss",
    "UsePathSGD",
]

__getattr__, __dir__ = lazy_exports(__name__)

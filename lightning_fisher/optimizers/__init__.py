"""Optimizers that the regularizer is compared with: plain `torch.optim.Optimizer`, torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.optimizers.entropy_sgd import EntropySGD
    from lightning_fisher.optimizers.path_sgd import PathSGD

__all__ = [
    "EntropySGD",
    "PathSGD",
]

__getattr__, __dir__ = lazy_exports(__name__)

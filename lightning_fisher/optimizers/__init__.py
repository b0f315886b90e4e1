"""Optimizers that the regularizer is compared with: plain `torch.optim.Optimizer`, torch only."""

from __future__ import annotations

from lightning_fisher.optimizers.entropy_sgd import EntropySGD
from lightning_fisher.optimizers.path_sgd import PathSGD

__all__ = ["EntropySGD", "PathSGD"]

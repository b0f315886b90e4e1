"""Lightning callbacks: train with the regularizer, watch the metrics, stop at convergence, resume exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.callbacks.atomic_checkpoint import AtomicCheckpointIO
    from lightning_fisher.callbacks.convergence import StopAtConvergence
    from lightning_fisher.callbacks.fisher_monitor import FisherMonitor
    from lightning_fisher.callbacks.fisher_regularizer import FisherRegularizer
    from lightning_fisher.callbacks.plateau_step import PlateauStep
    from lightning_fisher.callbacks.random_state import RandomState

__all__ = [
    "AtomicCheckpointIO",
    "FisherMonitor",
    "FisherRegularizer",
    "PlateauStep",
    "RandomState",
    "StopAtConvergence",
]

__getattr__, __dir__ = lazy_exports(__name__)

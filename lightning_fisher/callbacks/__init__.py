"""Lightning callbacks: train with the regularizer or other methods, measure, stop at convergence, resume exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.callbacks.atomic_checkpoint import AtomicCheckpointIO
    from lightning_fisher.callbacks.convergence import StopAtConvergence
    from lightning_fisher.callbacks.fisher_monitor import FisherMonitor
    from lightning_fisher.callbacks.fisher_penalty import FisherPenalty
    from lightning_fisher.callbacks.fisher_regularizer import FisherRegularizer
    from lightning_fisher.callbacks.jacobian_penalty import JacobianPenalty
    from lightning_fisher.callbacks.multipass_callback import MultiPassCallback
    from lightning_fisher.callbacks.plateau_step import PlateauStep
    from lightning_fisher.callbacks.random_state import RandomState
    from lightning_fisher.callbacks.sharpness_aware import GradientNormPenalty, SharpnessAware

__all__ = [
    "AtomicCheckpointIO",
    "FisherMonitor",
    "FisherPenalty",
    "FisherRegularizer",
    "GradientNormPenalty",
    "JacobianPenalty",
    "MultiPassCallback",
    "PlateauStep",
    "RandomState",
    "SharpnessAware",
    "StopAtConvergence",
]

__getattr__, __dir__ = lazy_exports(__name__)

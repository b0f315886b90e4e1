"""Lightning callbacks: train with the regulariser, watch the metrics."""

from lightning_fisher.callbacks.fisher_monitor import FisherMonitor
from lightning_fisher.callbacks.fisher_regularizer import FisherRegularizer
from lightning_fisher.callbacks.random_state import RandomState

__all__ = ["FisherMonitor", "FisherRegularizer", "RandomState"]

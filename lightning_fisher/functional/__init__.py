"""The method itself: pure functions of a module and a batch, torch only."""

from lightning_fisher.functional.divergence import Divergence, gradient_divergence
from lightning_fisher.functional.gram import ScaledGram, gram_matrix, scaled_gram
from lightning_fisher.functional.logdet import FisherLogDet, fisher_log_det, log_det
from lightning_fisher.functional.penalty import Penalty, penalty_gradient, penalty_of_losses

__all__ = [
    "Divergence",
    "FisherLogDet",
    "Penalty",
    "ScaledGram",
    "fisher_log_det",
    "gradient_divergence",
    "gram_matrix",
    "log_det",
    "penalty_gradient",
    "penalty_of_losses",
    "scaled_gram",
]

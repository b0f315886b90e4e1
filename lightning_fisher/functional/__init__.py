"""The method itself: pure functions of a module and a batch, torch only."""

from lightning_fisher.exceptions import NonFiniteError
from lightning_fisher.functional.curvature.input_jacobian import robustness
from lightning_fisher.functional.curvature.norms import (
    HessianFrobeniusNorm,
    HessianSpectralRadius,
    frobenius_norm,
    hessian_frobenius_norm,
    hessian_spectral_radius,
    spectral_radius,
)
from lightning_fisher.functional.fisher.bounds import (
    estimate_from_gamma,
    fia,
    gamma_from_estimate,
    log_bound_term,
    log_ellipsoid_height,
    theorem1_bound,
)
from lightning_fisher.functional.fisher.exact import exact_gamma
from lightning_fisher.functional.fisher.gradient_norms import log_gradient_norms
from lightning_fisher.functional.fisher.log_determinant import FisherLogDet, fisher_log_det, log_det
from lightning_fisher.functional.fisher.spectrum import log_spectrum
from lightning_fisher.functional.gram.matrix import ScaledGram, gram_matrix, scaled_gram
from lightning_fisher.functional.gram.rules.custom import check_rule, register_rule
from lightning_fisher.functional.multipass.divergence import Divergence, gradient_divergence
from lightning_fisher.functional.multipass.finite_difference import penalty_gradient
from lightning_fisher.functional.multipass.loop import Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.regularized import RegularizedGradient, regularized_gradient
from lightning_fisher.functional.ranking import Interval, bootstrap_interval, kendall_tau, spearman_rho

__all__ = [
    "Divergence",
    "FisherLogDet",
    "HessianFrobeniusNorm",
    "HessianSpectralRadius",
    "Interval",
    "NonFiniteError",
    "Penalty",
    "RegularizedGradient",
    "ScaledGram",
    "bootstrap_interval",
    "check_rule",
    "estimate_from_gamma",
    "exact_gamma",
    "fia",
    "fisher_log_det",
    "frobenius_norm",
    "gamma_from_estimate",
    "gradient_divergence",
    "gram_matrix",
    "hessian_frobenius_norm",
    "hessian_spectral_radius",
    "kendall_tau",
    "log_bound_term",
    "log_det",
    "log_ellipsoid_height",
    "log_gradient_norms",
    "log_spectrum",
    "penalty_gradient",
    "penalty_of_losses",
    "register_rule",
    "regularized_gradient",
    "robustness",
    "scaled_gram",
    "spearman_rho",
    "spectral_radius",
    "theorem1_bound",
]

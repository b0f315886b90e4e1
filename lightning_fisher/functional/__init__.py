"""The method itself: pure functions of a module and a batch, torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
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
    from lightning_fisher.functional.fisher.layers import (
        LayeredLogDet,
        LayerFisher,
        layer_gram_matrices,
        layer_log_dets,
    )
    from lightning_fisher.functional.fisher.log_determinant import FisherLogDet, fisher_log_det, log_det
    from lightning_fisher.functional.fisher.spectrum import log_spectrum
    from lightning_fisher.functional.gram.matrix import ScaledGram, gram_matrix, scaled_gram
    from lightning_fisher.functional.gram.rules.custom import check_rule, register_rule
    from lightning_fisher.functional.multipass.divergence import Divergence, gradient_divergence
    from lightning_fisher.functional.multipass.finite_difference import difference_penalty_gradient, penalty_gradient
    from lightning_fisher.functional.multipass.loop import Penalty, penalty_of_losses
    from lightning_fisher.functional.multipass.methods.fisher_penalty import fisher_penalty_gradient
    from lightning_fisher.functional.multipass.methods.gradient_norm_penalty import gradient_norm_penalty_gradient
    from lightning_fisher.functional.multipass.methods.sharpness_aware import sharpness_aware_gradient
    from lightning_fisher.functional.multipass.methods.step_gradient import StepGradient, multipass_gradient
    from lightning_fisher.functional.multipass.passes import Evaluation, SubBatch
    from lightning_fisher.functional.multipass.regularized import RegularizedGradient, regularized_gradient
    from lightning_fisher.functional.penalties.flat_minimum import flat_minimum_penalty
    from lightning_fisher.functional.penalties.generalized_cross_entropy import generalized_cross_entropy
    from lightning_fisher.functional.penalties.jacobian import jacobian_penalty
    from lightning_fisher.functional.penalties.large_margin import large_margin_loss
    from lightning_fisher.functional.ranking import (
        Interval,
        bootstrap_interval,
        jackknife_interval,
        kendall_tau,
        spearman_rho,
    )
    from lightning_fisher.functional.ranking.granulated import GranulatedKendall, granulated_kendall
    from lightning_fisher.functional.ranking.partial import partial_kendall_tau
    from lightning_fisher.functional.ranking.sign_error import RobustSignError, SignError, robust_sign_error

__all__ = [
    "Divergence",
    "Evaluation",
    "FisherLogDet",
    "GranulatedKendall",
    "HessianFrobeniusNorm",
    "HessianSpectralRadius",
    "Interval",
    "LayerFisher",
    "LayeredLogDet",
    "NonFiniteError",
    "Penalty",
    "RegularizedGradient",
    "RobustSignError",
    "ScaledGram",
    "SignError",
    "StepGradient",
    "SubBatch",
    "bootstrap_interval",
    "check_rule",
    "difference_penalty_gradient",
    "estimate_from_gamma",
    "exact_gamma",
    "fia",
    "fisher_log_det",
    "fisher_penalty_gradient",
    "flat_minimum_penalty",
    "frobenius_norm",
    "gamma_from_estimate",
    "generalized_cross_entropy",
    "gradient_divergence",
    "gradient_norm_penalty_gradient",
    "gram_matrix",
    "granulated_kendall",
    "hessian_frobenius_norm",
    "hessian_spectral_radius",
    "jackknife_interval",
    "jacobian_penalty",
    "kendall_tau",
    "large_margin_loss",
    "layer_gram_matrices",
    "layer_log_dets",
    "log_bound_term",
    "log_det",
    "log_ellipsoid_height",
    "log_gradient_norms",
    "log_spectrum",
    "multipass_gradient",
    "partial_kendall_tau",
    "penalty_gradient",
    "penalty_of_losses",
    "register_rule",
    "regularized_gradient",
    "robust_sign_error",
    "robustness",
    "scaled_gram",
    "sharpness_aware_gradient",
    "spearman_rho",
    "spectral_radius",
    "theorem1_bound",
]

__getattr__, __dir__ = lazy_exports(__name__)

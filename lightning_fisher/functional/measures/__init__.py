"""Measures of generalization: what the field computes from a trained network to say how well it will do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.functional.measures.folding import fold_batch_norm, weight_matrices
    from lightning_fisher.functional.measures.gradient_statistics import (
        evidence_log_det,
        fisher_rao_norm,
        gradient_noise_scale,
        gradient_signal_to_noise,
        participation_ratio,
    )
    from lightning_fisher.functional.measures.hessian_flatness import relative_flatness
    from lightning_fisher.functional.measures.hessian_traces import (
        TraceEstimate,
        gauss_newton_trace,
        hessian_trace,
        weighted_hessian_trace,
    )
    from lightning_fisher.functional.measures.margins import (
        MarginSignature,
        margin_signature,
        median_margin,
        normalized_margins,
        output_margin,
        output_margins,
    )
    from lightning_fisher.functional.measures.norms import (
        distance_from_initialization,
        folded_norm,
        log_frobenius_product,
        log_spectral_product,
        parameter_norm,
    )
    from lightning_fisher.functional.measures.pac_bayes import (
        NoiseTolerance,
        noise_tolerance,
        pac_bayes_flatness,
        pac_bayes_magnitude_flatness,
    )
    from lightning_fisher.functional.measures.path_norms import path_norm
    from lightning_fisher.functional.measures.registry import MEASURES, Measure, select_measures
    from lightning_fisher.functional.measures.sharpness import average_sharpness, worst_sharpness

__all__ = [
    "MEASURES",
    "MarginSignature",
    "Measure",
    "NoiseTolerance",
    "TraceEstimate",
    "average_sharpness",
    "distance_from_initialization",
    "evidence_log_det",
    "fisher_rao_norm",
    "fold_batch_norm",
    "folded_norm",
    "gauss_newton_trace",
    "gradient_noise_scale",
    "gradient_signal_to_noise",
    "hessian_trace",
    "log_frobenius_product",
    "log_spectral_product",
    "margin_signature",
    "median_margin",
    "noise_tolerance",
    "normalized_margins",
    "output_margin",
    "output_margins",
    "pac_bayes_flatness",
    "pac_bayes_magnitude_flatness",
    "parameter_norm",
    "participation_ratio",
    "path_norm",
    "relative_flatness",
    "select_measures",
    "weight_matrices",
    "weighted_hessian_trace",
    "worst_sharpness",
]

__getattr__, __dir__ = lazy_exports(__name__)

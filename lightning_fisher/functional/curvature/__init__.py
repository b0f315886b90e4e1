"""Curvature beside γ̂: norms of the Gram matrix and the Hessian, and of the input-output Jacobian."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.functional.curvature.norms import (
        HessianFrobeniusNorm,
        HessianSpectralRadius,
        frobenius_norm,
        hessian_frobenius_norm,
        hessian_spectral_radius,
        spectral_radius,
    )

__all__ = [
    "HessianFrobeniusNorm",
    "HessianSpectralRadius",
    "frobenius_norm",
    "hessian_frobenius_norm",
    "hessian_spectral_radius",
    "spectral_radius",
]

__getattr__, __dir__ = lazy_exports(__name__)

"""torchmetrics classes over :mod:`lightning_fisher.functional`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.metrics.collection import local_minima_metrics
    from lightning_fisher.metrics.curvature import FrobeniusNormMetric, SpectralRadiusMetric
    from lightning_fisher.metrics.fisher import FisherMetric
    from lightning_fisher.metrics.hessian import HessianFrobeniusMetric, HessianSpectralRadiusMetric
    from lightning_fisher.metrics.measures import MeasureMetric
    from lightning_fisher.metrics.robustness import RobustnessMetric

__all__ = [
    "FisherMetric",
    "FrobeniusNormMetric",
    "HessianFrobeniusMetric",
    "HessianSpectralRadiusMetric",
    "MeasureMetric",
    "RobustnessMetric",
    "SpectralRadiusMetric",
    "local_minima_metrics",
]

__getattr__, __dir__ = lazy_exports(__name__)

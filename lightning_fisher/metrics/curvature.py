"""Frobenius norm and spectral radius of the Fisher information over subsets."""

from __future__ import annotations

from torch import Tensor

from lightning_fisher.metrics.base import mean_and_std
from lightning_fisher.metrics.gram import GramMetric


class FrobeniusNormMetric(GramMetric):
    r"""Squared Frobenius norm of the Fisher information, ``1/T Σ_t ‖ξ^t‖_F² / N′²`` (Sec. 7.1); lower is better.

    It equals ``‖∇²_w L‖_F²`` at an exact minimum (Eq. 1; Wu et al. 2017). Options, update and cost are those
    of `FisherMetric`, with which it shares each Gram matrix in a ``MetricCollection``.

    ``compute()`` returns float64 scalars: ``frobenius_norm`` and ``frobenius_norm_std`` (its sample standard
    deviation over the T subsets, ``nan`` for T = 1).

    Args:
        logit_norm: See `FisherMetric`.
        batch_norm: See `FisherMetric`.
        chunk_size: See `FisherMetric`.
        loss_fn: See `FisherMetric`.
        rank_policy: See `FisherMetric`; a singular matrix is no obstacle here.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is not one of its allowed values.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import FrobeniusNormMetric
        >>> metric = FrobeniusNormMetric()
        >>> metric.update(torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> sorted(metric.compute())
        ['frobenius_norm', 'frobenius_norm_std']
    """

    def compute(self) -> dict[str, Tensor]:
        """Mean and spread over all subsets of all processes."""
        mean, std = mean_and_std(self.subsets("frobenius_norm"))
        return {"frobenius_norm": mean, "frobenius_norm_std": std}


class SpectralRadiusMetric(GramMetric):
    r"""Spectral radius of the Fisher information, ``1/T Σ_t λ_max(ξ^t) / N′`` (Sec. 7.1); lower is better.

    It equals ``ρ(∇²_w L)`` at an exact minimum (Eq. 1; Keskar et al. 2017). Options, update and cost are those
    of `FisherMetric`, with which it shares each Gram matrix in a ``MetricCollection``.

    ``compute()`` returns float64 scalars: ``spectral_radius`` and ``spectral_radius_std`` (its sample standard
    deviation over the T subsets, ``nan`` for T = 1).

    Args:
        logit_norm: See `FisherMetric`.
        batch_norm: See `FisherMetric`.
        chunk_size: See `FisherMetric`.
        loss_fn: See `FisherMetric`.
        rank_policy: See `FisherMetric`; a singular matrix is no obstacle here.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is not one of its allowed values.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import SpectralRadiusMetric
        >>> metric = SpectralRadiusMetric()
        >>> metric.update(torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> sorted(metric.compute())
        ['spectral_radius', 'spectral_radius_std']
    """

    def compute(self) -> dict[str, Tensor]:
        """Mean and spread over all subsets of all processes."""
        mean, std = mean_and_std(self.subsets("spectral_radius"))
        return {"spectral_radius": mean, "spectral_radius_std": std}

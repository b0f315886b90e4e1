"""All metrics of a minimum that the paper compares, at the cost of the most expensive one."""

from __future__ import annotations

from torchmetrics import Metric, MetricCollection

from lightning_fisher.functional.fisher.log_determinant import RankPolicy
from lightning_fisher.functional.gram.matrix import BatchNorm
from lightning_fisher.functional.gram.rules.parameter_scale import Scale
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.metrics.curvature import FrobeniusNormMetric, SpectralRadiusMetric
from lightning_fisher.metrics.fisher import FisherMetric
from lightning_fisher.metrics.hessian import HessianFrobeniusMetric, HessianSpectralRadiusMetric
from lightning_fisher.metrics.robustness import RobustnessMetric


def local_minima_metrics(
    *,
    logit_norm: float | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    loss_fn: LossFn | None = None,
    rank_policy: RankPolicy = "pseudo",
    residual: bool = True,
    scale: Scale = "none",
    hessian: bool = False,
    prefix: str | None = None,
    postfix: str | None = None,
) -> MetricCollection:
    """The metrics of Sec. 7.1 in one collection, in which each Gram matrix is computed once.

    γ̂, Frobenius norm and spectral radius share one compute group from the first update on: one Gram matrix a
    subset serves the three. Robustness makes its own passes, and so do the norms of the true Hessian.

    Args:
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)`` (Sec. 7.2.3) in the three metrics of the Gram matrix; ``None``: as
            is. Robustness and the Hessian's norms are always of the network as it is.
        batch_norm: ``"eval"`` or ``"batch"``, of the Gram matrix, see `FisherMetric`.
        chunk_size: Samples in a pass, at least 2, of all metrics; ``None``: a whole subset (with ``"batch"``: 10).
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        rank_policy: ``"pseudo"`` or ``"error"`` for singular Gram matrices.
        residual: ``False``: the Gram matrix at equal outputs, in the three metrics of it; see `FisherMetric`.
        scale: Of the gradients, in the three metrics of the Gram matrix; see `FisherMetric`.
        hessian: Add the Frobenius norm and the spectral radius of the true Hessian: some 50 further
            Hessian-vector products a subset.
        prefix: In front of every key.
        postfix: Behind every key.

    Returns:
        A ``MetricCollection``: ``update(module, inputs, targets)`` adds a subset, ``compute()`` returns ``gamma``,
        ``gamma_std`` and the parts of `FisherMetric`, and ``frobenius_norm``, ``spectral_radius``,
        ``robustness`` (with ``hessian`` also ``hessian_frobenius_norm`` and ``hessian_spectral_radius``), each with
        its ``…_std``.

    Raises:
        ValueError: If an option is not one of its allowed values.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import local_minima_metrics
        >>> metrics = local_minima_metrics()
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> for _ in range(3):
        ...     metrics.update(net, torch.randn(8, 4), torch.randint(3, (8,)))
        >>> [key for key in sorted(metrics.compute()) if not key.endswith("_std") and "gamma_" not in key]
        ['frobenius_norm', 'gamma', 'robustness', 'spectral_radius']
    """
    names = ["FisherMetric", "FrobeniusNormMetric", "SpectralRadiusMetric"]
    metrics: list[Metric] = [
        kind(logit_norm, batch_norm, chunk_size, loss_fn, rank_policy, residual, scale)
        for kind in (FisherMetric, FrobeniusNormMetric, SpectralRadiusMetric)
    ]
    metrics.append(RobustnessMetric(chunk_size=chunk_size))
    if hessian:
        metrics.append(HessianFrobeniusMetric(chunk_size=chunk_size, loss_fn=loss_fn))
        metrics.append(HessianSpectralRadiusMetric(chunk_size=chunk_size, loss_fn=loss_fn))
    groups = [names, *([type(metric).__name__] for metric in metrics[len(names) :])]
    return MetricCollection(metrics, prefix=prefix, postfix=postfix, compute_groups=groups)

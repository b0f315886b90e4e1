"""Frobenius norm and spectral radius of the true Hessian over subsets."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer, require_positive
from lightning_fisher.functional.curvature.norms import hessian_frobenius_norm, hessian_spectral_radius
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.metrics.base import SubsetMetric, mean_and_std


class HessianFrobeniusMetric(SubsetMetric):
    r"""Squared Frobenius norm of the true Hessian, ``1/T Σ_t ‖∇²_w L(S^t, w)‖_F²``; lower is better.

    Estimated by Hutchinson's method, see `hessian_frobenius_norm`. An update costs ``num_probes``
    Hessian-vector products, each two backward passes over the subset.

    ``compute()`` returns float64 scalars: ``hessian_frobenius_norm``, ``hessian_frobenius_norm_std`` (sample
    standard deviation over subsets, ``nan`` for T = 1) and ``hessian_frobenius_norm_error`` (the mean standard
    error of the estimates: all subsets share their probes, so it does not shrink with T).

    Args:
        num_probes: Random probes a subset.
        seed: Of the probes.
        chunk_size: Samples whose graph is held at a time; ``None``: the whole subset.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_probes`` or ``chunk_size`` is not positive.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import HessianFrobeniusMetric
        >>> metric = HessianFrobeniusMetric(num_probes=4)
        >>> metric.update(torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> sorted(metric.compute())
        ['hessian_frobenius_norm', 'hessian_frobenius_norm_error', 'hessian_frobenius_norm_std']
    """

    states: ClassVar[tuple[str, ...]] = ("squared_norm", "standard_error")

    def __init__(
        self,
        num_probes: int = 20,
        seed: int = 0,
        chunk_size: int | None = None,
        loss_fn: LossFn | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_integer("num_probes", num_probes, 1)
        require_integer("chunk_size", chunk_size, 1, or_none=True)
        self.num_probes = num_probes
        self.seed = seed
        self.chunk_size = chunk_size
        self.loss_fn = loss_fn

    def update(self, module: nn.Module, inputs: Any, targets: Any) -> None:
        """Add one subset, as `FisherMetric` does."""
        with torch.inference_mode(False), self.non_finite_is_nan():
            value, error = hessian_frobenius_norm(
                module,
                inputs,
                targets,
                num_probes=self.num_probes,
                seed=self.seed,
                loss_fn=self.loss_fn,
                chunk_size=self.chunk_size,
            )
            self.add_subset(squared_norm=value, standard_error=error)

    def compute(self) -> dict[str, Tensor]:
        """Mean, spread and estimation error over all subsets of all processes."""
        mean, std = mean_and_std(self.subsets("squared_norm"))
        return {
            "hessian_frobenius_norm": mean,
            "hessian_frobenius_norm_std": std,
            "hessian_frobenius_norm_error": self.subsets("standard_error").mean(),
        }


class HessianSpectralRadiusMetric(SubsetMetric):
    r"""Spectral radius of the true Hessian, ``1/T Σ_t ρ(∇²_w L(S^t, w))``; lower is better.

    By Lanczos' method, see `hessian_spectral_radius`. An update costs at most ``max_iter`` Hessian-vector
    products, each two backward passes over the subset.

    ``compute()`` returns float64 scalars: ``hessian_spectral_radius``, ``hessian_spectral_radius_std`` (sample
    standard deviation over subsets, ``nan`` for T = 1) and ``hessian_spectral_radius_converged`` (the share of
    subsets that reached ``tol``).

    Args:
        tol: Relative residual at which to stop.
        max_iter: Hessian-vector products a subset at most.
        seed: Of the start vector.
        chunk_size: Samples whose graph is held at a time; ``None``: the whole subset.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``tol``, ``max_iter`` or ``chunk_size`` is not positive.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import HessianSpectralRadiusMetric
        >>> metric = HessianSpectralRadiusMetric()
        >>> metric.update(torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> metric.compute()["hessian_spectral_radius_converged"]
        tensor(1., dtype=torch.float64)
    """

    states: ClassVar[tuple[str, ...]] = ("spectral_radius", "converged")

    def __init__(
        self,
        tol: float = 1e-3,
        max_iter: int = 100,
        seed: int = 0,
        chunk_size: int | None = None,
        loss_fn: LossFn | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive("tol", tol)
        require_integer("max_iter", max_iter, 1)
        require_integer("chunk_size", chunk_size, 1, or_none=True)
        self.tol = tol
        self.max_iter = max_iter
        self.seed = seed
        self.chunk_size = chunk_size
        self.loss_fn = loss_fn

    def update(self, module: nn.Module, inputs: Any, targets: Any) -> None:
        """Add one subset, as `FisherMetric` does."""
        with torch.inference_mode(False), self.non_finite_is_nan():
            result = hessian_spectral_radius(
                module,
                inputs,
                targets,
                tol=self.tol,
                max_iter=self.max_iter,
                seed=self.seed,
                loss_fn=self.loss_fn,
                chunk_size=self.chunk_size,
            )
            self.add_subset(spectral_radius=result.value, converged=torch.tensor(result.converged))

    def compute(self) -> dict[str, Tensor]:
        """Mean, spread and share of converged subsets over all processes."""
        mean, std = mean_and_std(self.subsets("spectral_radius"))
        return {
            "hessian_spectral_radius": mean,
            "hessian_spectral_radius_std": std,
            "hessian_spectral_radius_converged": self.subsets("converged").mean(),
        }

"""The states that every metric of one Gram matrix shares."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice, require_integer, require_positive
from lightning_fisher.functional.curvature.norms import frobenius_norm, spectral_radius
from lightning_fisher.functional.evaluation.samples import num_samples
from lightning_fisher.functional.fisher.log_determinant import FisherLogDet, RankPolicy
from lightning_fisher.functional.gram.matrix import BatchNorm
from lightning_fisher.functional.gram.rules.parameter_scale import Scale
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.metrics.base import SubsetMetric
from lightning_fisher.metrics.sharing import shared_log_det

PARTS = ("residual", "sensitivity", "magnitude", "direction")  # of ln|ξ|: the third is the sum of the first two


class GramMetric(SubsetMetric):
    """Everything that one Gram matrix ``ξ = J Jᵀ`` of a subset gives.

    The base class of `FisherMetric`, `FrobeniusNormMetric` and `SpectralRadiusMetric`, which differ only in
    ``compute``. All hold the same states, so that a ``MetricCollection`` puts them in one compute group, and
    each Gram matrix is computed once. Metrics whose options differ are not to be grouped.

    Args:
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)`` (Sec. 7.2.3; the paper's value is 0.04), for models whose
            training losses differ; ``None`` leaves the logits as they are.
        batch_norm: ``"eval"``: per-sample gradients with running statistics. ``"batch"``: batch statistics on
            consecutive chunks of ``chunk_size`` samples, as the authors' code does.
        chunk_size: Samples in a pass, at least 2. With ``"eval"`` it only limits memory;
            ``None``: all of a subset, or as many as the memory available holds.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        rank_policy: What happens when a Gram matrix is singular. ``"pseudo"``: a warning, and only the
            non-zero eigenvalues count; where it is not finite or zero altogether, the subset counts as ``nan``.
            ``"error"``: a ``ValueError``, in both cases.
        residual: ``False``: the Gram matrix at equal outputs, see `gram_matrix`.
        scale: ``"none"``, or ``"layer"``, ``"filter"``, ``"element"``: of gradients with respect to relative changes of
            layers, units or weights, see `gram_matrix`.
        kwargs: Arguments of :class:`torchmetrics.Metric` (``sync_on_compute``, ``process_group``, …).

    Raises:
        ValueError: If an option is not one of its allowed values.
    """

    states: ClassVar[tuple[str, ...]] = (
        "log_det",
        "magnitude",
        "direction",
        "residual",
        "sensitivity",
        "frobenius_norm",
        "spectral_radius",
        "subset_size",
    )

    def __init__(
        self,
        logit_norm: float | None = None,
        batch_norm: BatchNorm = "eval",
        chunk_size: int | None = None,
        loss_fn: LossFn | None = None,
        rank_policy: RankPolicy = "pseudo",
        residual: bool = True,
        scale: Scale = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive("logit_norm", logit_norm, or_none=True)
        require_choice("batch_norm", batch_norm, get_args(BatchNorm))
        require_choice("rank_policy", rank_policy, get_args(RankPolicy))
        require_integer("chunk_size", chunk_size, 2, or_none=True)
        require_choice("scale", scale, get_args(Scale))
        self.logit_norm = logit_norm
        self.batch_norm: BatchNorm = batch_norm
        self.chunk_size = chunk_size
        self.loss_fn = loss_fn
        self.rank_policy: RankPolicy = rank_policy
        self.with_residual = residual  # a state is called by the part's name
        self.scale: Scale = scale

    def update(self, module: nn.Module, inputs: Any, targets: Any) -> None:
        """Add one subset; ``module`` is left unchanged.

        Args:
            module: The network, in any mode.
            inputs: N′ un-augmented training samples: a tensor, a tuple (``module(*inputs)``) or a dict
                (``module(**inputs)``), samples in dimension 0.
            targets: Class indices ``[N′]``, class probabilities, or what ``loss_fn`` takes.
        """
        size = torch.tensor(num_samples(inputs))
        tolerant = self.non_finite_is_nan(subset_size=size) if self.rank_policy == "pseudo" else nullcontext()
        with torch.inference_mode(False), tolerant:  # states that outlive Lightning's validation loop
            result = shared_log_det(
                module,
                inputs,
                targets,
                loss_fn=self.loss_fn,
                batch_norm=self.batch_norm,
                chunk_size=self.chunk_size,
                logit_norm=self.logit_norm,
                residual=self.with_residual,
                scale=self.scale,
                rank_policy=self.rank_policy,
            )
            self.add_subset(**gram_quantities(result), subset_size=size)


def gram_quantities(result: FisherLogDet) -> dict[str, Tensor]:
    """Everything that one Gram matrix gives, as scalars by the names of `GramMetric`'s states.

    Args:
        result: Of the matrix's log-determinant, which holds the matrix too.
    """
    norms = result.log_norms.exp()
    gram = result.gram * norms * norms.unsqueeze(1)
    return {
        "log_det": result.log_det,
        "magnitude": result.magnitude,
        "direction": result.direction,
        "residual": result.residual,
        "sensitivity": result.sensitivity,
        "frobenius_norm": frobenius_norm(gram),
        "spectral_radius": spectral_radius(gram),
    }

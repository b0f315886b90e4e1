"""``ln|ξ|``, stable at any loss, with an explicit rank policy (Eq. 6)."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice
from lightning_fisher.functional.evaluation.precision import epsilon_of
from lightning_fisher.functional.fisher.cosines import Cosines
from lightning_fisher.functional.fisher.decided import decided_gram
from lightning_fisher.functional.gram.matrix import BatchNorm, ScaledGram
from lightning_fisher.functional.gram.rules.parameter_scale import Scale
from lightning_fisher.functional.losses.loss import LossFn

RankPolicy = Literal["error", "pseudo"]


class FisherLogDet(NamedTuple):
    """Log-determinant of a Gram matrix of per-sample gradients, and what it is made of.

    Attributes:
        log_det: ``ln|ξ| = residual + sensitivity + direction``, in nats. Compare only at equal N.
        magnitude: ``Σ_j 2 ln‖∇ℓ_j‖ = residual + sensitivity``: the part that gradient norms make.
        direction: ``ln|C| ≤ 0``, C the cosine similarities of the gradients: the part that their angles make.
        rank: Rank of ξ; N unless deficient.
        log_norms: ``ln‖∇ℓ_j‖``, ``[N]``; ``−inf`` where the gradient is exactly zero.
        gram: C, ``[N, N]``, unit diagonal.
        residual: ``Σ_j 2 ln‖∂ℓ_j/∂q_j‖``, q the logits, rescaled if they are: how far each loss went down. Zero
            where it is left out.
        sensitivity: ``Σ_j ln G_jj``, G the Gram matrix at equal outputs: how the outputs react to the weights.
    """

    log_det: Tensor
    magnitude: Tensor
    direction: Tensor
    rank: Tensor
    log_norms: Tensor
    gram: Tensor
    residual: Tensor
    sensitivity: Tensor


def log_det(gram: Tensor, *, rank_policy: RankPolicy = "error", tol: float | None = None) -> Tensor:
    """Log-determinant of a Gram matrix.

    Nearly all of the 9–17 decades that the eigenvalues of ξ span is the scale of its rows, so the determinant is taken
    of the rescaled matrix: ``ln|ξ| = Σ_j ln ξ_jj + ln|C|``, ``C_jk = ξ_jk / √(ξ_jj ξ_kk)``, from its eigenvalues in
    float64.

    Args:
        gram: ``[N, N]``, symmetric positive semi-definite.
        rank_policy: What to do when ξ is singular (N > W, duplicate samples, a zero gradient): ``"error"`` raises;
            ``"pseudo"`` warns and returns ``Σ_j ln ξ_jj + ln|C|₊`` over non-zero rows and the eigenvalues of C above
            ``tol``, which is not comparable with a value at full rank; ``nan`` where all gradients are zero.
        tol: Eigenvalues of C up to ``tol`` times the largest count as zero. ``None``: those that are within the error
            of C: N float64 epsilons of the largest (the eigensolver's), twice the most negative one (there is none in
            exact arithmetic), and, where ``gram`` was made in less than float64, 8 √N of those epsilons (rounding of
            entries up to one, independent of each other). A matrix is known to be made in float32 if that is its dtype
            or if it is, itself, what `gram_matrix` returned.

    Returns:
        Scalar, float64.

    Raises:
        ValueError: If ``gram`` is not a finite square matrix, or is singular under ``"error"``.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import log_det
        >>> round(float(log_det(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))), 4)
        1.7918
    """
    require_choice("rank_policy", rank_policy, get_args(RankPolicy))
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"Expected argument `gram` to be a square matrix, but got shape {tuple(gram.shape)}.")
    double = gram.double()
    nothing = torch.zeros_like(double[0])
    scaled = ScaledGram(double, nothing, epsilon_of(gram), nothing)
    return log_det_of(scaled, rank_policy=rank_policy, tol=tol).log_det


def fisher_log_det(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    logit_norm: float | None = None,
    residual: bool = True,
    scale: Scale = "none",
    rank_policy: RankPolicy = "error",
    tol: float | None = None,
) -> FisherLogDet:
    """``ln|ξ|`` of N samples, one term of γ̂ (Eq. 6): lower indicates better generalization.

    ``ln|ξ| = Σ_j 2 ln‖∂ℓ_j/∂q_j‖ + Σ_j ln G_jj + ln|C|``, exactly: residual, sensitivity and direction, where G is the
    Gram matrix of the gradients of ``⟨u_j, q_j(w)⟩``, q the logits, rescaled if ``logit_norm`` is given, u_j the unit
    vector of ``∂ℓ_j/∂q_j``, and C the cosine similarities. With ``residual=False`` it is ``ln|G|``, γ̂ at equal outputs,
    as the paper's comparison has them; see the page on the forms of γ̂ for what each is unchanged by.

    The gradient of each loss with respect to the output is formed in float64 and scaled to unit length before it enters
    the backward pass; its log-norm is added back. With the cross-entropy of logits float32 passes then give the float64
    answer at any loss. Costs what `gram_matrix` costs; where C is so ill-conditioned that the error of float32 passes
    decides its rank, or more than 1e-6 of the result, the passes are repeated with the module in float64, with a
    warning. With a ``loss_fn`` the two samples with the smallest gradients also run in float64, in evaluation mode: a
    gradient that cancels, that of a squared error near its minimum or of a probability near one say, is not held by
    float32, and all passes are repeated then, too.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`.
        targets: See `gram_matrix`.
        loss_fn: See `gram_matrix`.
        batch_norm: See `gram_matrix`.
        chunk_size: See `gram_matrix`.
        logit_norm: See `gram_matrix`.
        residual: See `gram_matrix`.
        scale: See `gram_matrix`.
        rank_policy: See `log_det`.
        tol: See `log_det`.

    Returns:
        A `FisherLogDet`, all float64.

    Raises:
        ValueError: As `gram_matrix` and `log_det`.
        NonFiniteError: As `gram_matrix`.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import fisher_log_det
        >>> result = fisher_log_det(torch.nn.Linear(8, 3), torch.randn(5, 8), torch.tensor([0, 1, 2, 1, 0]))
        >>> bool(torch.isclose(result.log_det, result.magnitude + result.direction))
        True
    """
    require_choice("rank_policy", rank_policy, get_args(RankPolicy))
    how: dict[str, Any] = {
        "loss_fn": loss_fn,
        "batch_norm": batch_norm,
        "chunk_size": chunk_size,
        "logit_norm": logit_norm,
        "residual": residual,
        "scale": scale,
    }
    scaled = decided_gram(module, inputs, targets, how, tol)
    return log_det_of(scaled, rank_policy=rank_policy, tol=tol)


def log_det_of(
    scaled: ScaledGram, *, rank_policy: RankPolicy | Literal["silent"] = "error", tol: float | None = None
) -> FisherLogDet:
    """The log-determinant of a Gram matrix with its scales apart.

    Args:
        scaled: The matrix.
        rank_policy: See `log_det`; ``"silent"`` is ``"pseudo"`` without the warning.
        tol: See `log_det`.
    """
    return _measure(Cosines(scaled, tol), rank_policy)


def _measure(found: Cosines, rank_policy: str) -> FisherLogDet:
    """Log-determinant, by the rank policy."""
    count, rank = len(found.values), found.kept.sum()
    if int(rank) < count and rank_policy != "silent":
        _deficient(count, int(rank), found, rank_policy)
    direction = torch.where(found.kept, found.values, 1.0).log().sum()
    magnitude = 2 * torch.where(found.nonzero, found.log_norms, 0.0).sum()
    residual = 2 * torch.where(found.nonzero, found.log_residuals, 0.0).sum()
    sensitivity = 2 * torch.where(found.nonzero, found.log_norms - found.log_residuals, 0.0).sum()
    if int(rank) == 0:  # an empty sum is no measure of anything
        magnitude, direction, residual, sensitivity = (
            part * math.nan for part in (magnitude, direction, residual, sensitivity)
        )
    total = magnitude + direction
    return FisherLogDet(total, magnitude, direction, rank, found.log_norms, found.cosine, residual, sensitivity)


def _deficient(count: int, rank: int, found: Cosines, rank_policy: str) -> None:
    zero = torch.nonzero(~found.nonzero).flatten().tolist()
    cause = "more samples than parameters, or duplicate samples"
    if found.undecided:
        cause += ", as far as float32 tells"
    if zero:
        cause = f"zero gradients of samples {zero[:10]}"
    line = f"The Gram matrix of {count} per-sample gradients has rank {rank} ({cause})"
    if rank_policy == "error":
        raise ValueError(
            f'{line}: its log-determinant is −∞. Use distinct samples, fewer of them, or `rank_policy="pseudo"`.'
        )
    reported = (
        "the log-pseudo-determinant is reported, which is not comparable with a value at full rank"
        if rank
        else "its log-determinant is reported as nan"
    )
    warnings.warn(
        f"{line}: {reported}.",
        stacklevel=5,
    )

"""``ln|ξ|``, stable at any loss, with an explicit rank policy (Eq. 6)."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.loss import LossFn
from lightning_fisher.functional.gram.matrix import BatchNorm, scaled_gram

RankPolicy = Literal["error", "pseudo"]


class FisherLogDet(NamedTuple):
    """Log-determinant of a Gram matrix of per-sample gradients, and what it is made of.

    Attributes:
        log_det: ``ln|ξ| = magnitude + direction``, in nats. Compare only at equal N.
        magnitude: ``Σ_j 2 ln‖∇ℓ_j‖``: the part that gradient norms make.
        direction: ``ln|C| ≤ 0``, C the cosine similarities of the gradients: the part that their angles make.
        rank: Rank of ξ; N unless deficient.
        log_norms: ``ln‖∇ℓ_j‖``, ``[N]``; ``−inf`` where the gradient is exactly zero.
        gram: C, ``[N, N]``, unit diagonal.
    """

    log_det: Tensor
    magnitude: Tensor
    direction: Tensor
    rank: Tensor
    log_norms: Tensor
    gram: Tensor


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
        tol: Eigenvalues of C up to ``tol`` times the largest count as zero; ``None``: N times the float64 epsilon.

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
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"Expected argument `gram` to be a square matrix, but got shape {tuple(gram.shape)}.")
    scaled = gram.double()
    return _split(scaled, torch.zeros_like(scaled[0]), rank_policy, tol, torch.finfo(torch.float64).eps).log_det


def fisher_log_det(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    logit_norm: float | None = None,
    rank_policy: RankPolicy = "error",
    tol: float | None = None,
) -> FisherLogDet:
    """``ln|ξ|`` of N samples, one term of γ̂ (Eq. 6): lower indicates better generalization.

    The gradient of each loss with respect to the output is formed in float64 and scaled to unit length before it enters
    the backward pass; its log-norm is added back. Float32 passes then give the float64 answer at any loss. Costs what
    `gram_matrix` costs.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`.
        targets: See `gram_matrix`.
        loss_fn: See `gram_matrix`.
        batch_norm: See `gram_matrix`.
        chunk_size: See `gram_matrix`.
        logit_norm: See `gram_matrix`.
        rank_policy: See `log_det`.
        tol: See `log_det`; ``None``: N times the epsilon of the passes.

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
    gram, log_scales, eps = scaled_gram(
        module,
        inputs,
        targets,
        loss_fn=loss_fn,
        batch_norm=batch_norm,
        chunk_size=chunk_size,
        logit_norm=logit_norm,
    )
    return _split(gram, log_scales, rank_policy, tol, eps)


def _split(gram: Tensor, log_scales: Tensor, rank_policy: str, tol: float | None, eps: float) -> FisherLogDet:
    """Log-determinant of ``diag(e^l) gram diag(e^l)``."""
    if rank_policy not in ("error", "pseudo"):
        raise ValueError(f'Expected argument `rank_policy` to be "error" or "pseudo", but got {rank_policy!r}.')
    count = gram.shape[0]
    diagonal = gram.diagonal()
    nonzero = (diagonal > 0) & ~torch.isneginf(log_scales)
    norms = torch.where(nonzero, diagonal, 1.0).sqrt()
    cosine = gram / norms / norms.unsqueeze(1)
    cosine = torch.where(nonzero & nonzero.unsqueeze(1), cosine, 0.0)
    cosine.diagonal().copy_(nonzero.double())
    log_norms = torch.where(nonzero, norms.log() + log_scales, -math.inf)
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("Expected argument `gram` to be finite, but it has infinite or undefined entries.")
    values = torch.linalg.eigvalsh(cosine.cpu()).to(gram.device)  # small: faster than on a GPU
    kept = values > (count * eps if tol is None else tol) * values.max()
    rank = kept.sum()
    if int(rank) < count:
        _deficient(count, int(rank), nonzero, rank_policy)
    direction = torch.where(kept, values, 1.0).log().sum()
    magnitude = 2 * torch.where(nonzero, log_norms, 0.0).sum()
    if int(rank) == 0:  # an empty sum is no measure of anything
        magnitude, direction = magnitude * math.nan, direction * math.nan
    return FisherLogDet(magnitude + direction, magnitude, direction, rank, log_norms, cosine)


def _deficient(count: int, rank: int, nonzero: Tensor, rank_policy: str) -> None:
    zero = torch.nonzero(~nonzero).flatten().tolist()
    cause = f"zero gradients of samples {zero[:10]}" if zero else "more samples than parameters, or duplicate samples"
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
        stacklevel=4,
    )

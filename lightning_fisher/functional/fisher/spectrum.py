"""Eigenvalues of ξ, the smallest as exact as the largest."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_spectrum(cosine: Tensor, log_norms: Tensor, *, rank: int | None = None) -> Tensor:
    """Logarithms of the eigenvalues of ``ξ = diag(‖∇ℓ‖) C diag(‖∇ℓ‖)``, in descending order.

    They span 9–17 decades near a minimum, nearly all of it the scale of the rows; an eigensolver of ξ itself loses
    those below ``ε λ_max``. Here ``C = X Xᵀ`` is factored first and the rows of X are scaled and sorted, so that the
    singular values of a *graded* matrix are what is computed, each with its own relative accuracy.

    Args:
        cosine: C, ``[N, N]``, the cosine similarities: `FisherLogDet.gram`.
        log_norms: ``ln‖∇ℓ_j‖``, ``[N]``: `FisherLogDet.log_norms`.
        rank: Eigenvalues of C that are not zero: `FisherLogDet.rank`; ``None``: those above N float64 epsilons of the
            largest.

    Returns:
        ``[N]``, float64, descending; ``−inf`` for eigenvalues that are zero: those of zero gradients, and those beyond
        the rank of C.

    Raises:
        ValueError: If the shapes don't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import log_spectrum
        >>> log_spectrum(torch.eye(2), torch.tensor([0.0, -3.0]))
        tensor([ 0., -6.], dtype=torch.float64)
    """
    count = len(log_norms)
    if log_norms.ndim != 1 or cosine.shape != (count, count) or count == 0:
        raise ValueError(
            "Expected arguments `cosine` and `log_norms` to have shapes [N, N] and [N], "
            f"but got {tuple(cosine.shape)} and {tuple(log_norms.shape)}."
        )
    logs = torch.full((count,), -math.inf, dtype=torch.float64, device=cosine.device)
    nonzero = torch.nonzero(~torch.isneginf(log_norms)).flatten()
    if len(nonzero) == 0:
        return logs
    order = nonzero[log_norms[nonzero].double().argsort(descending=True)]
    norms = log_norms[order].double()
    values, vectors = torch.linalg.eigh(cosine.double()[order][:, order])
    if rank is None:
        rank = int((values > len(values) * torch.finfo(torch.float64).eps * values[-1]).sum())
    kept = slice(len(values) - rank, None)
    rows = vectors[:, kept] * values[kept].sqrt() * (norms - norms[0]).exp().unsqueeze(1)
    found = torch.linalg.svdvals(torch.linalg.qr(rows.T.contiguous(), mode="r").R)
    logs[:rank] = 2 * (found.log() + norms[0])
    return logs

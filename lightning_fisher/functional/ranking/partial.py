"""Rank correlation that is left when others are held fixed: does a measure say more than the training loss does?"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_fisher.functional.ranking.correlation import pair_signs, require_paired


def partial_kendall_tau(x: Tensor, y: Tensor, given: Tensor) -> Tensor:
    """Kendall's partial τ-b of x and y given k control variables (Kendall 1942).

    τ-b is the cosine of the vectors of pair signs, ``s_x = (sign(x_i − x_j))_ij``. The partial coefficient is the
    cosine of what is left of ``s_x`` and ``s_y`` when their projections on the controls' ``s_1 … s_k`` are taken
    away; for one control z it is Kendall's ``(τ_xy − τ_xz τ_yz) / √((1 − τ_xz²)(1 − τ_yz²))``, and for several the
    entry of the inverse of the matrix of τ. Costs (k + 2) n² comparisons and numbers.

    It removes what is *linear in the pair signs*. Kendall's partial τ of variables that are independent given the
    controls is near zero, not exactly zero.

    Args:
        x: ``[…, n]``, for example a measure of n runs.
        y: ``[…, n]``, for example their test errors.
        given: ``[…, k, n]``, for example training loss, epochs and parameter norm. Controls that are constant, or that
            order the runs as others do, change nothing.

    Returns:
        ``[…]`` float64 in [−1, 1]; ``nan`` where x or y is constant, orders the runs exactly as the controls explain
        it, holds a ``nan`` (or a control does), or n < 2.

    Raises:
        ValueError: If the shapes don't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import kendall_tau, partial_kendall_tau
        >>> loss = torch.arange(6.0)
        >>> measure, error = loss + torch.tensor([0, 2, 0, 0, 2, 0]), loss + torch.tensor([0, 0, 2, 0, 0, 2])
        >>> plain, partial = kendall_tau(measure, error), partial_kendall_tau(measure, error, loss.unsqueeze(0))
        >>> round(float(plain), 2), round(float(partial), 2)
        (0.5, -0.18)
    """
    x, y = require_paired(x, y)
    if given.ndim != x.ndim + 1 or given.shape[:-2] != x.shape[:-1] or given.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"Expected argument `given` to have shape […, k, n], x and y being {tuple(x.shape)}, "
            f"but got {tuple(given.shape)}."
        )
    signs = pair_signs(torch.cat([x.unsqueeze(-2), y.unsqueeze(-2), given.double()], -2)).flatten(-2)
    signs = signs / torch.linalg.vector_norm(signs, dim=-1, keepdim=True)
    undefined = torch.isnan(signs[..., :2, :]).flatten(-2).any(-1) | torch.isnan(given).flatten(-2).any(-1)
    tau = torch.nan_to_num(signs) @ torch.nan_to_num(signs).mT  # a constant control is a zero vector
    controls, cross = tau[..., 2:, 2:], tau[..., :2, 2:]
    tolerance = 1e-10  # the τ of n runs are multiples of about 1/n²
    residual = tau[..., :2, :2] - cross @ torch.linalg.pinv(controls, atol=tolerance, hermitian=True) @ cross.mT
    left = residual[..., 0, 0].clamp_min(0.0), residual[..., 1, 1].clamp_min(0.0)
    value = (residual[..., 0, 1] / (left[0] * left[1]).sqrt()).clamp(-1.0, 1.0)
    undefined = undefined | (left[0] < tolerance) | (left[1] < tolerance)
    return torch.where(undefined, torch.nan, value)

"""Rank correlation of a measure with the test error over runs."""

from __future__ import annotations

import torch
from torch import Tensor


def kendall_tau(x: Tensor, y: Tensor) -> Tensor:
    """Kendall's τ-b: agreement of the order of pairs, with ties accounted for.

    ``τ_b = (P − Q) / √((n₀ − n₁)(n₀ − n₂))``: P concordant and Q discordant of n₀ = n(n−1)/2 pairs, n₁ and n₂ of
    them tied in x and in y. Equals ``scipy.stats.kendalltau``. Costs n² comparisons.

    Args:
        x: ``[…, n]``, for example a metric of n runs; leading dimensions are independent problems.
        y: ``[…, n]``, for example their test errors.

    Returns:
        ``[…]`` float64 in [−1, 1]. It is ``nan``, the correlation being undefined, where x or y is constant, holds
        a ``nan``, or n < 2.

    Raises:
        ValueError: If the shapes differ or have no dimension.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import kendall_tau
        >>> kendall_tau(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor(0.6667, dtype=torch.float64)
    """
    x, y = require_paired(x, y)
    sign_x, sign_y = pair_signs(x), pair_signs(y)
    # Every pair is counted twice, in all three sums.
    agreement = (sign_x * sign_y).sum((-2, -1))
    untied = sign_x.square().sum((-2, -1)) * sign_y.square().sum((-2, -1))
    return agreement / untied.sqrt()  # 0/0 = nan where there is no untied pair


def spearman_rho(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's ρ: Pearson's correlation of the ranks, tied values sharing their mean rank.

    Equals ``scipy.stats.spearmanr``. Costs n² comparisons.

    Args:
        x: ``[…, n]``, for example a metric of n runs; leading dimensions are independent problems.
        y: ``[…, n]``, for example their test errors.

    Returns:
        ``[…]`` float64 in [−1, 1]. It is ``nan``, the correlation being undefined, where x or y is constant, holds
        a ``nan``, or n < 2.

    Raises:
        ValueError: If the shapes differ or have no dimension.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import spearman_rho
        >>> spearman_rho(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor(0.8000, dtype=torch.float64)
    """
    x, y = require_paired(x, y)
    # The sum of an element's pair signs is twice its mean rank, centered.
    rank_x, rank_y = pair_signs(x).sum(-1), pair_signs(y).sum(-1)
    return (rank_x * rank_y).sum(-1) / (rank_x.square().sum(-1) * rank_y.square().sum(-1)).sqrt()


def pair_signs(values: Tensor) -> Tensor:
    """``sign(v_i − v_j)``, ``[…, n, n]``; by comparison, so that equal infinities tie; nan stays nan."""
    first, second = values.unsqueeze(-1), values.unsqueeze(-2)
    signs = (first > second).double() - (first < second).double()
    return torch.where(torch.isnan(first) | torch.isnan(second), torch.nan, signs)


def require_paired(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The two in float64.

    Raises:
        ValueError: If their shapes differ or have no dimension.
    """
    if x.shape != y.shape or x.ndim == 0:
        raise ValueError(
            "Expected arguments `x` and `y` to have the same shape […, n], "
            f"but got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    return x.double(), y.double()

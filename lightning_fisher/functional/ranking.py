"""Rank correlation of a metric with the test error over runs, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Statistic = Callable[[Tensor, Tensor], Tensor]
MAX_ELEMENTS = 2**24  # of the pairwise comparisons held at a time


class Interval(NamedTuple):
    """A confidence interval: two float64 scalars, ``nan`` where the statistic is undefined."""

    low: Tensor
    high: Tensor


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
    x, y = _paired(x, y)
    sign_x, sign_y = _pair_signs(x), _pair_signs(y)
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
    x, y = _paired(x, y)
    # The sum of an element's pair signs is twice its mean rank, centered.
    rank_x, rank_y = _pair_signs(x).sum(-1), _pair_signs(y).sum(-1)
    return (rank_x * rank_y).sum(-1) / (rank_x.square().sum(-1) * rank_y.square().sum(-1)).sqrt()


def bootstrap_interval(
    statistic: Statistic,
    x: Tensor,
    y: Tensor,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic of n pairs (Efron 1979): pairs are drawn with replacement.

    Args:
        statistic: `kendall_tau`, `spearman_rho`, or any function of two ``[r, n]`` tensors that returns ``[r]``.
        x: ``[n]``, for example a metric of n runs.
        y: ``[n]``, for example their test errors.
        level: Coverage, between 0 and 1.
        num_resamples: Draws of n pairs.
        seed: Of the draws; the global random state is not touched.

    Returns:
        The ``(1 ∓ level)/2`` quantiles over the resamples. Resamples in which the statistic is undefined (with
        few runs one may draw a constant) are left out; both ends are ``nan`` where it is undefined on the data.

    Raises:
        ValueError: If the shapes differ, are not ``[n]``, or an option is outside its range.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import bootstrap_interval, kendall_tau
        >>> x = torch.arange(8.0)
        >>> bootstrap_interval(kendall_tau, x, x)
        Interval(low=tensor(1., dtype=torch.float64), high=tensor(1., dtype=torch.float64))
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected argument `level` to be between 0 and 1, but got {level}.")
    if num_resamples < 1:
        raise ValueError(f"Expected argument `num_resamples` to be at least 1, but got {num_resamples}.")
    x, y = _paired(x, y)
    if x.ndim != 1:
        raise ValueError(f"Expected arguments `x` and `y` to have shape [n], but got {tuple(x.shape)}.")
    count = len(x)
    if bool(torch.isnan(statistic(x.unsqueeze(0), y.unsqueeze(0))).any()):
        return Interval(*x.new_full((2,), torch.nan))
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(count, (num_resamples, count), generator=generator).to(x.device)
    at_once = max(1, MAX_ELEMENTS // count**2)
    values = torch.cat([statistic(x[part], y[part]) for part in draws.split(at_once)])
    ends = values.new_tensor([(1 - level) / 2, (1 + level) / 2])
    return Interval(*torch.nanquantile(values, ends))


def _pair_signs(values: Tensor) -> Tensor:
    """``sign(v_i − v_j)``, ``[…, n, n]``; by comparison, so that equal infinities tie; nan stays nan."""
    first, second = values.unsqueeze(-1), values.unsqueeze(-2)
    signs = (first > second).double() - (first < second).double()
    return torch.where(torch.isnan(first) | torch.isnan(second), torch.nan, signs)


def _paired(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim == 0:
        raise ValueError(
            "Expected arguments `x` and `y` to have the same shape […, n], "
            f"but got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    return x.double(), y.double()

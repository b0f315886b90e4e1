"""The granulated rank correlation: does a measure order networks that differ in one option only?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fisher.functional.ranking.correlation import pair_signs, require_paired
from lightning_fisher.functional.ranking.settings import Options, combined, option_codes


class GranulatedKendall(NamedTuple):
    """Ψ and what it is made of.

    Attributes:
        value: Ψ, the mean of the ψ of the options that vary; float64 scalar.
        per_option: ψ of every option; ``nan`` where no two runs differ in it alone.
    """

    value: Tensor
    per_option: dict[str, Tensor]


def granulated_kendall(x: Tensor, y: Tensor, options: Options) -> GranulatedKendall:
    """Granulated Kendall coefficient Ψ (Jiang et al. 2020).

    For option i the runs are grouped by all *other* options, so that within a group only i varies; ``ψ_i`` is the plain
    mean over the groups of Kendall's τ (τ-a: a tie counts 0), and ``Ψ = 1/k Σ_i ψ_i``. A measure that merely
    follows one option (the width, say) has a high τ over all runs and a low Ψ.

    Pairs of runs in a group with the same value of i (repeats with another seed) are not counted; to compare within
    seeds, name the seed among the options. Costs k n² comparisons.

    Args:
        x: ``[n]``, a measure of n runs, oriented so that larger should mean a larger ``y``.
        y: ``[n]``, for example their generalization gaps.
        options: Name → n values, the options that vary between the runs. An incomplete grid is fine.

    Returns:
        A `GranulatedKendall`. Groups without a pair are left out, so are options without a group in the mean; Ψ is
        ``nan`` where no option is left. A ``nan`` in x or y makes the ψ ``nan`` that it enters.

    Raises:
        ValueError: If shapes or the numbers of values differ.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import granulated_kendall
        >>> options = {"width": [8, 8, 16, 16], "lr": [0.1, 0.2, 0.1, 0.2]}
        >>> result = granulated_kendall(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 4.0, 3.0]), options)
        >>> {name: float(value) for name, value in result.per_option.items()}, float(result.value)
        ({'width': 1.0, 'lr': 0.0}, 0.5)
    """
    x, y = require_paired(x, y)
    if x.ndim != 1:
        raise ValueError(f"Expected arguments `x` and `y` to have shape [n], but got {tuple(x.shape)}.")
    table = option_codes(options, len(x)).to(x.device)
    agreement = pair_signs(x) * pair_signs(y)
    per_option = {}
    for i, name in enumerate(options):
        groups = combined(torch.cat([table[:i], table[i + 1 :], torch.zeros_like(table[:1])]))
        pairs = (groups == groups.unsqueeze(1)) & (table[i] != table[i].unsqueeze(1))
        per_option[name] = _mean_over_groups(agreement, pairs, groups)
    values = torch.stack(list(per_option.values()))
    varied = torch.stack([_varies(table, i) for i in range(len(table))])
    return GranulatedKendall(values[varied].mean(), per_option)


def _mean_over_groups(agreement: Tensor, pairs: Tensor, groups: Tensor) -> Tensor:
    total = agreement.new_zeros(len(groups)).index_add_(0, groups, torch.where(pairs, agreement, 0.0).sum(1))
    count = agreement.new_zeros(len(groups)).index_add_(0, groups, pairs.double().sum(1))
    return (total / count)[count > 0].mean()


def _varies(table: Tensor, i: int) -> Tensor:
    """Whether any two runs differ in option i alone."""
    different = (table.unsqueeze(1) != table.unsqueeze(2)).sum(0)
    return ((different == 1) & (table[i] != table[i].unsqueeze(1))).any()

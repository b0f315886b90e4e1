"""The settings of runs: which options two of them share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

Options = Mapping[str, Sequence[Hashable] | Tensor]


def codes(name: str, values: Sequence[Hashable] | Tensor, count: int) -> Tensor:
    """``[n]`` integers, equal where the values are.

    Raises:
        ValueError: If the number of values is not ``count``.
    """
    listed = values.tolist() if isinstance(values, Tensor) else list(values)
    if len(listed) != count:
        raise ValueError(f"Expected argument `{name}` to have one value a run, {count}, but got {len(listed)}.")
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in listed], dtype=torch.long)


def option_codes(options: Options, count: int) -> Tensor:
    """``[k, n]``: the codes of k options of n runs.

    Raises:
        ValueError: If there is no option, or one has another number of values.
    """
    if not options:
        raise ValueError("Expected argument `options` to name at least one option, but got none.")
    return torch.stack([codes(f"options[{name!r}]", values, count) for name, values in options.items()])


def combined(columns: Tensor) -> Tensor:
    """``[n]`` integers, equal where all k rows of ``[k, n]`` are."""
    return torch.unique(columns.T, dim=0, return_inverse=True)[1]

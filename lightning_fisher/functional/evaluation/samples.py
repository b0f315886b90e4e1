"""A batch in any structure of tensors, the samples in dimension 0: call a module with it, count, take, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


def call_module(module: Callable[..., Any], inputs: Any) -> Any:
    """``module(x)``, ``module(*inputs)`` for a tuple or list, ``module(**inputs)`` for a dict."""
    if isinstance(inputs, (tuple, list)):
        return module(*inputs)
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(inputs)


def num_samples(inputs: Any, name: str = "inputs") -> int:
    """The size of dimension 0, which every tensor in ``inputs`` (of the argument ``name``) has to share.

    Raises:
        ValueError: If there is no tensor, or sizes differ.
    """
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"Expected every tensor in argument `{name}` to have the samples, at least one, in dimension 0, "
            f"but got sizes {sorted(map(str, sizes))}."
        )
    return sizes.pop()  # type: ignore[return-value]


def take(tree: Any, index: slice | Tensor) -> Any:
    """The samples ``index`` of every tensor in a nested structure."""
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) and leaf.ndim else leaf, tree)


def ordinary(tree: Any, dtype: torch.dtype | None) -> Any:
    """Detached tensors that autograd may save, also from inference mode; floating ones in ``dtype`` if given."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.clone() if leaf.is_inference() else leaf.detach()
        return leaf.to(dtype) if dtype is not None and leaf.is_floating_point() else leaf

    return tree_map(convert, tree)


def split(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """Consecutive pieces of given sizes of every tensor in a nested structure."""
    leaves, spec = tree_flatten(tree)
    pieces = [
        leaf.split(list(sizes)) if isinstance(leaf, Tensor) and leaf.ndim else [leaf] * len(sizes) for leaf in leaves
    ]
    return [tree_unflatten(list(piece), spec) for piece in zip(*pieces, strict=True)]


def chunks(count: int, chunk_size: int) -> list[slice]:
    """Consecutive slices of ``chunk_size`` samples; the last may be smaller."""
    return [slice(start, min(start + chunk_size, count)) for start in range(0, count, chunk_size)]

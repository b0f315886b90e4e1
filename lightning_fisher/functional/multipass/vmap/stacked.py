"""Sub-batches of one structure and shape as one batch with a dimension in front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


class VmapError(ValueError):
    """A loss, or a batch, that can't be evaluated for all sub-batches in one pass."""


class UnequalSizesError(VmapError):
    """Sub-batches that differ in size only: the last batch of an epoch."""


class StackedBatches:
    """Sub-batches of one structure and one shape, with a dimension for the sub-batch in front.

    Attributes:
        count: M.

    Raises:
        VmapError: If they differ in more than the values of their tensors.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self.count = len(batches)
        flat = [tree_flatten(batch) for batch in batches]
        self._spec = flat[0][1]
        if any(spec != self._spec for _, spec in flat):
            raise VmapError("the sub-batches differ in structure")
        self._columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
        for leaves in self._columns:
            kinds = {type(leaf).__name__ for leaf in leaves}
            if all(isinstance(leaf, Tensor) for leaf in leaves):
                if len({(leaf.dtype, leaf.device, leaf.layout, leaf.ndim) for leaf in leaves}) > 1:
                    raise VmapError("the sub-batches differ in the kind of their tensors")
                if len({leaf.shape for leaf in leaves}) > 1:
                    raise UnequalSizesError("the sub-batches differ in size")
            elif not all(isinstance(leaf, (bool, int, float, str, type(None))) for leaf in leaves):
                raise VmapError(f"the sub-batches hold objects that can't be stacked ({', '.join(sorted(kinds))})")
            elif any(leaf != leaves[0] for leaf in leaves):
                raise VmapError(f"the sub-batches differ in what isn't a tensor ({', '.join(sorted(kinds))})")

    @property
    def tensors(self) -> list[Tensor]:
        """Of the first sub-batch, uncopied."""
        return [leaves[0] for leaves in self._columns if isinstance(leaves[0], Tensor)]

    def stacked(self) -> list[Tensor]:
        """A fresh copy of the tensors, ``[M, …]`` each: a loss may change its batch."""
        return [torch.stack(leaves).detach() for leaves in self._columns if isinstance(leaves[0], Tensor)]

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """The batch of one sub-batch, with its tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaves[0], Tensor) else leaves[0] for leaves in self._columns]
        return tree_unflatten(leaves, self._spec)

"""What a module returns, as a tree that torch can flatten, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_flatten, tree_map, tree_unflatten


class Fields:
    """The fields of a dataclass, or the items of a mapping, that torch's trees don't look into."""

    def __init__(self, kind: type, values: dict[Any, Any]) -> None:
        self.kind = kind
        self.values = values

    def restored(self) -> Any:
        """An object of the original class."""
        values = {name: as_returned(value) for name, value in self.values.items()}
        if issubclass(self.kind, Mapping):
            return self.kind(values)  # type: ignore[call-arg]
        found = self.kind.__new__(self.kind)
        for name, value in values.items():
            object.__setattr__(found, name, value)
        return found


register_pytree_node(
    Fields,
    lambda fields: (list(fields.values.values()), (fields.kind, tuple(fields.values))),
    lambda values, context: Fields(context[0], dict(zip(context[1], values, strict=True))),
)


def as_tree(outputs: Any) -> Any:
    """``outputs`` with dataclasses and mappings that torch's trees take for leaves as `Fields`."""
    if isinstance(outputs, Tensor):
        return outputs

    def opened(leaf: Any) -> Any:
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = [field.name for field in dataclasses.fields(leaf) if hasattr(leaf, field.name)]
            return Fields(type(leaf), {name: as_tree(getattr(leaf, name)) for name in names})
        if isinstance(leaf, Mapping):
            return Fields(type(leaf), {key: as_tree(value) for key, value in leaf.items()})
        return leaf

    return tree_map(opened, outputs)


def as_returned(tree: Any) -> Any:
    """The inverse of `as_tree`."""
    if isinstance(tree, Tensor):
        return tree
    return tree_map(
        lambda leaf: leaf.restored() if isinstance(leaf, Fields) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, Fields),
    )


def without(tree: Any, positions: frozenset[int]) -> Any:
    """The same with nan in place of the leaves at ``positions``."""
    if not positions:
        return tree
    leaves, spec = tree_flatten(tree)
    return tree_unflatten([math.nan if i in positions else leaf for i, leaf in enumerate(leaves)], spec)

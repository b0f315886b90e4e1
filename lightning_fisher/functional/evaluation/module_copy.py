"""Copies of modules, to be changed where the module itself must not be."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

_Module = TypeVar("_Module", bound=nn.Module)


def copied(module: _Module) -> _Module:
    """A deep copy, also of modules that keep computed tensors as attributes.

    Features of the last pass, or the weights of ``torch.nn.utils.weight_norm``, are part of a graph, which
    `copy.deepcopy` alone refuses: they are copied without it.
    """
    memo: dict[int, Any] = {}
    for submodule in module.modules():
        for leaf in tree_flatten(list(vars(submodule).values()))[0]:
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    return copy.deepcopy(module, memo)

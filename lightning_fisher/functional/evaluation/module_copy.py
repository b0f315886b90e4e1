"""Copies of modules, to be changed where the module itself must not be."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of modules that keep computed tensors as attributes (``torch.nn.utils.weight_norm``)."""
    computed = [
        value
        for submodule in module.modules()
        for value in vars(submodule).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in computed}
    return copy.deepcopy(module, memo)

"""Copies of modules, to be changed where the module itself must not be, and copies in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
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


def float64_copy(module: _Module) -> _Module:
    """A copy of ``module`` with its parameters and buffers in float64.

    Raises:
        ValueError: If the module can't be copied, in the words of what fails.
    """
    try:
        return copied(module).double()
    except Exception as error:
        raise ValueError(
            f"Expected a module that can be copied (to float64), but got {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}"
        ) from error


@contextmanager
def requires_float64() -> Iterator[None]:
    """Say what is missing where a forward pass fails because the module fixes a narrower type.

    Raises:
        ValueError: In place of torch's error about types that don't match.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign in text for sign in ("dtype", "scalar type", "Double")):
            raise
        raise ValueError(
            "Expected a module that runs in float64, but its forward pass mixes types there, as it does where it casts "
            f"to a narrower one by itself: {text.splitlines()[0]}"
        ) from error

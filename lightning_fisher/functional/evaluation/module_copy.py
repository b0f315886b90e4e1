"""A module in float64, and copies of modules, to be changed where the module itself must not be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.graph import leaves
from lightning_fisher.functional.evaluation.samples import refuse_closed, take

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


def require_separate_copy(module: nn.Module, inputs: Any) -> None:
    """Refuse a module whose copy still uses its own parameters: by a function that closes over them, say.

    Args:
        module: The module.
        inputs: Samples; two are run.

    Raises:
        ValueError: With what to do.
    """
    refuse_closed(inputs, "inputs")
    twin = copied(module)
    with differentiable_evaluation(twin), _all_trainable(module):
        outputs = evaluate(twin, differentiable(take(inputs, slice(0, 2)), twin))
        tensors = [leaf for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor)]
        used = {id(leaf) for tensor in tensors for leaf in leaves(tensor)}
    if any(id(parameter) in used for parameter in module.parameters()):
        raise ValueError(
            "Expected a module that can be copied, but the forward pass of its copy uses parameters of the original: "
            "by a function that closes over it; make that a method."
        )


@contextmanager
def _all_trainable(module: nn.Module) -> Iterator[None]:
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    frozen = [parameter for parameter in frozen if parameter.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def in_float64(*modules: Any) -> Iterator[None]:
    """Parameters, buffers and tensors in attributes in float64 inside, the very same as before afterwards.

    In place, not on a copy: hooks on parameters stay, and functions that close over the modules see it.

    Args:
        modules: Modules; anything else is left alone.
    """
    found = {id(tensor): tensor for module in modules for tensor in _floating(module)}
    before = [(tensor, tensor.data, tensor.grad) for tensor in found.values() if tensor.dtype != torch.float64]
    try:
        for tensor, data, _ in before:
            tensor.grad = None
            tensor.data = data.double()
        yield
    finally:
        for tensor, data, gradient in before:
            tensor.data = data
            tensor.grad = gradient


def _floating(module: Any) -> Iterator[Tensor]:
    """Parameters, buffers and tensors in attributes that are floating-point and no results of a graph."""
    for submodule in module.modules() if isinstance(module, nn.Module) else ():
        attributes = vars(submodule)
        held = [attributes, dict(submodule._parameters), dict(submodule._buffers)]
        for leaf in tree_flatten([list(tensors.values()) for tensors in held])[0]:
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.is_leaf and not leaf.is_inference():
                yield leaf


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

"""A module in float64, and copies of modules, to be changed where the module itself must not be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_fisher.exceptions import first_line
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.graph import leaves
from lightning_fisher.functional.evaluation.samples import refuse_closed, take

_Module = TypeVar("_Module", bound=nn.Module)


def copied(module: _Module) -> _Module:
    """A deep copy, also of modules that keep computed tensors as attributes.

    Features of the last pass, or the weights of ``torch.nn.utils.weight_norm``, are part of a graph, which
    `copy.deepcopy` alone refuses: they are copied without it.

    Raises:
        ValueError: If the module holds something else that can't be copied, a lock or an open file say.
    """
    memo: dict[int, Any] = {}
    for submodule in module.modules():
        for leaf in tree_flatten(list(vars(submodule).values()))[0]:
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever an object makes of being copied
        found = f"{first_line(error)}{_place(module)}"
        raise ValueError(f"Expected a module that can be copied, but `copy.deepcopy` refuses it: {found}.") from error


def _place(module: nn.Module) -> str:
    """Which attribute can't be copied."""
    for prefix, submodule in module.named_modules():
        for name, value in vars(submodule).items():
            if name in vars(nn.Module()):
                continue
            try:
                copy.deepcopy(value)
            except Exception:  # the same, or of a graph
                if not isinstance(value, Tensor):
                    return f" (attribute `{f'{prefix}.{name}' if prefix else name}`)"
    return ""


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
def in_float64(*modules: Any) -> Iterator[Callable[[nn.Parameter], nn.Parameter]]:
    """Parameters, buffers and tensors in attributes in float64 inside, the very same as before afterwards.

    In place, not on a copy: hooks on parameters stay, and functions that close over the modules see it. Parameters
    whose gradient accumulator somebody holds (`DistributedDataParallel`, whose hooks are on it) would lose it with
    their type: the modules hold others in their place inside, with the same hooks, and whatever else uses them gets
    nan.

    Args:
        modules: Modules; anything else is left alone.

    Yields:
        What stands for a parameter inside.
    """
    narrow = {id(t): t for module in modules for t in _floating(module) if t.dtype != torch.float64}
    held = {key: tensor for key, tensor in narrow.items() if isinstance(tensor, nn.Parameter) and _is_held(tensor)}
    before = [(tensor, tensor.data, tensor.grad) for tensor in narrow.values()]
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    twins = {key: _twin(tensor) for key, tensor in held.items()}
    try:
        for tensor, data, _ in before:
            if id(tensor) not in held:
                tensor.grad = None
                tensor.data = data.double()
        if held:
            for owner in (sub for module in modules if isinstance(module, nn.Module) for sub in module.modules()):
                for name, parameter in owner._parameters.items():
                    if parameter is not None and id(parameter) in twins:
                        replaced.append((owner, name, parameter))
                        owner._parameters[name] = twins[id(parameter)]
            for tensor in held.values():
                tensor.data = torch.full_like(tensor, torch.nan)
        yield lambda parameter: twins.get(id(parameter), parameter)
    finally:
        for owner, name, parameter in replaced:
            owner._parameters[name] = parameter
        for tensor, data, gradient in before:
            tensor.data = data
            if id(tensor) not in held:
                tensor.grad = gradient


def _twin(parameter: nn.Parameter) -> nn.Parameter:
    """In float64, with the same hooks."""
    twin = nn.Parameter(parameter.detach().double(), parameter.requires_grad)
    twin._backward_hooks = parameter._backward_hooks
    return twin


def _is_held(parameter: nn.Parameter) -> bool:
    """Whether anything but a graph that is about to end holds the node that accumulates a parameter's gradient.

    A new node takes the place of one that nobody holds, without what was noted on the old one.
    """
    if not parameter.requires_grad:
        return False
    with torch.inference_mode(False), torch.enable_grad():
        _accumulator(parameter).metadata[__name__] = True
        return _accumulator(parameter).metadata.pop(__name__, False) is True


def _accumulator(parameter: nn.Parameter) -> Any:
    return parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


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

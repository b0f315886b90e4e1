"""Gradient hooks, which an extra pass must not fire: they see one gradient a step, the regularized one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from lightning_fisher.exceptions import LightningFisherError, acting

_NONE: dict[Any, Any] = {}
_OF_MODULES = ("_backward_hooks", "_backward_pre_hooks")


class ModuleHookError(LightningFisherError, ValueError):
    """A backward hook of a module changes the gradient, or would see none."""


def backward_tables(modules: Iterable[nn.Module]) -> list[dict[Any, Any]]:
    """The tables of hooks on modules' backward passes that hold some: theirs, and those of all modules at once.

    Args:
        modules: The modules.
    """
    tables = [getattr(nn.modules.module, f"_global{name}") for name in _OF_MODULES]
    tables += [getattr(module, name) for module in modules for name in _OF_MODULES]
    return [table for table in tables if table]


@contextmanager
def gradient_hooks_off(modules: Iterable[nn.Module], parameters: Iterable[Tensor]) -> Iterator[None]:
    """Take the hooks on parameters and on the modules' backward passes out, and put them back.

    torch offers no way to differentiate without them: `torch.autograd.grad` runs the hooks of the tensors it returns
    gradients of. The dictionaries that hold them are emptied; they stay the same objects, since torch refers to them.
    """
    hooks: list[dict[Any, Any]] = [p._backward_hooks for p in parameters if p._backward_hooks]  # type: ignore[misc]
    hooks += backward_tables(modules)
    saved = [dict(found) for found in hooks]
    try:
        for found in hooks:
            found.clear()
        yield
    finally:
        for found, before in zip(hooks, saved, strict=True):
            found.update(before)


@contextmanager
def module_hooks_watched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In a forward pass: in its backward pass the modules' hooks may look at gradients, but not change them.

    The penalty's gradient is added to those of the weights, and passes no module.

    Raises:
        ModuleHookError: In the backward pass, if one does.
    """
    tables = backward_tables(modules)
    saved = [dict(table) for table in tables]
    for table in tables:
        table.update({key: partial(_watched, hook) for key, hook in table.items()})
    try:
        yield
    finally:
        for table, before in zip(tables, saved, strict=True):
            table.update({key: hook for key, hook in before.items() if key in table})


def _watched(hook: Callable[..., Any], module: nn.Module, *gradients: Any) -> Any:
    found = hook(module, *gradients)
    given = found if isinstance(found, tuple) else (found,)
    if found is not None and any(a is not b for a, b in zip_longest(given, gradients[0])):
        raise ModuleHookError(
            f"{acting()} adds its gradient to those of the weights, but a backward hook of {type(module).__name__} "
            "changes the gradient that passes this module, which would change that of the loss alone; change it by "
            "`register_hook` on a tensor of the forward pass, or by a `torch.autograd.Function`."
        )
    return found


class GradientHooks:
    """The hooks on a module's parameters and backward passes as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = list(module.parameters())
        tables = [getattr(submodule, name) for submodule in module.modules() for name in _OF_MODULES]
        self._tables: list[tuple[Any, dict[Any, Any]]] = [(table, dict(table)) for table in tables]
        self._own = [self._of(parameter) for parameter in self._parameters]

    @staticmethod
    def _of(parameter: Any) -> tuple[dict[Any, Any], ...]:
        hooks = (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
        return tuple(dict(found) if found else _NONE for found in hooks)

    def remove_new(self) -> bool:
        """Remove the hooks that are new; whether there are any."""
        found = False
        for table, before in self._tables:
            found |= _without_new(table, before)
        for parameter, (backward, accumulated) in zip(self._parameters, self._own, strict=True):
            found |= _without_new(parameter._backward_hooks, backward)
            found |= _without_new(parameter._post_accumulate_grad_hooks, accumulated)  # type: ignore[attr-defined]
        return found


def _without_new(hooks: Any, before: dict[Any, Any]) -> bool:
    new = [key for key in hooks if key not in before] if hooks else []
    for key in new:
        del hooks[key]
    return bool(new)

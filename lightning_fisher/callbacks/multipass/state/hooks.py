"""Gradient hooks, which an extra pass must not fire: they see one gradient a step, the regularized one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_NONE: dict[Any, Any] = {}
_OF_MODULES = ("_backward_hooks", "_backward_pre_hooks")


@contextmanager
def gradient_hooks_off(module: nn.Module, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Take the hooks on parameters and on the modules' backward passes out, and put them back.

    torch offers no way to differentiate without them: `torch.autograd.grad` runs the hooks of the tensors it returns
    gradients of. The dictionaries that hold them are emptied; they stay the same objects, since torch refers to them.
    """
    hooks: list[dict[Any, Any]] = [p._backward_hooks for p in parameters if p._backward_hooks]  # type: ignore[misc]
    for submodule in module.modules():
        hooks += [getattr(submodule, name) for name in _OF_MODULES if getattr(submodule, name)]
    saved = [dict(found) for found in hooks]
    try:
        for found in hooks:
            found.clear()
        yield
    finally:
        for found, before in zip(hooks, saved, strict=True):
            found.update(before)


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

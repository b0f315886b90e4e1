"""Gradient hooks, which an extra pass must not fire: they see one gradient a step, the regularized one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

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

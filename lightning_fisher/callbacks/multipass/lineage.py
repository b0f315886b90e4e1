"""Whether what an optimizer finds in `.grad` was computed of what the backward pass left there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten

from lightning_fisher.exceptions import LightningFisherError, acting


class OverwrittenError(LightningFisherError, ValueError):
    """The gradient that the penalty's was added to is replaced, unread."""


class GradientLineage(TorchDispatchMode):
    """From the end of the backward pass on: which tensors were computed of the gradients.

    A tensor is, if any that takes part in the operation that makes or writes it is. So a gradient that is clipped,
    averaged, projected, or put back from a copy is known by its origin; one computed of something else, like the mean
    of gradients of single samples, is not.

    Args:
        parameters: ``(name, parameter)`` of what has a gradient with the penalty's.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self._parameters = [(name, p) for name, p in parameters if _is_followed(p.grad)]
        self._held: list[Any] = [p.grad for _, p in self._parameters]  # alive: addresses are not used again
        self._known = {_storage(gradient) for gradient in self._held}
        self._open = False
        self._written: set[tuple[int, int, int]] = set()  # places of gradients that something else was copied to

    def begin(self) -> None:
        """Follow what happens from now on."""
        self._open = True
        self.__enter__()

    def end(self) -> None:
        """No longer."""
        if self._open:
            self._open = False
            if _get_current_dispatch_mode() is self:
                self.__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follow one operation."""
        if not self._open:  # under another mode that was entered later, and never left
            return func(*args, **(kwargs or {}))
        given = [t for t in tree_flatten((args, kwargs or {}))[0] if _is_followed(t)]
        target = given[0] if given else None
        sources = given if target is None or not str(func).startswith("aten.copy_") else given[1:]
        known = any(_storage(t) in self._known for t in sources)
        made = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_flatten(made)[0] if _is_followed(t)]
        if known:
            self._held += tensors
            self._known |= {_storage(t) for t in [*given, *tensors]}
        if target is not None and str(func).startswith("aten.copy_"):
            (self._written.discard if known else self._written.add)(_place(target))
        return made

    def refuse_overwritten(self) -> None:
        """Check the gradients as they are now.

        Raises:
            OverwrittenError: If one of them is a tensor that has nothing to do with the one of the backward pass.
        """
        for name, parameter in self._overwritten():
            raise OverwrittenError(
                f"{acting()} adds its gradient to `.grad`, but that of {name!r} is replaced after the backward pass by "
                f"another of shape {tuple(parameter.shape)} that isn't computed of it, where the penalty would be "
                "lost; compute it of `.grad`, or step on what the backward pass leaves there."
            )

    def _overwritten(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters:
            gradient = parameter.grad
            if gradient is None or not _is_followed(gradient):
                continue
            foreign = _storage(gradient) not in self._known and gradient.untyped_storage().resizable()
            if (foreign or _place(gradient) in self._written) and bool(torch.any(gradient)):
                yield name, parameter


def _is_followed(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and type(value) in (Tensor, torch.nn.Parameter)


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> tuple[int, int, int]:
    return _storage(tensor), int(tensor.storage_offset()), tensor.numel()

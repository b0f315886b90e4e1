"""Tensors that a `training_step` changes in place: parameters outside of the optimizers, clamped weights, queues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError

SPARE = 2**26  # bytes that may be copied to see what changes, whatever the size of the network


class ChangedTensors:
    """Which tensors the step is known to change: of these a copy is kept, of the others the version is looked at."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._known

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, tensor: Tensor) -> None:
        """From now on a copy is kept."""
        self._known[id(tensor)] = tensor


class TensorSnapshot:
    """Values, places and ``requires_grad`` of tensors.

    Args:
        named: ``(name, tensor)``.
        changed: What the step is known to change; learns.
        thorough: Copy all of them and compare, as far as memory allows (of frozen weights beyond, the norms).
        limit: How many bytes may be copied to compare.
    """

    def __init__(
        self, named: Iterable[tuple[str, Tensor]], changed: ChangedTensors, thorough: bool, limit: int = SPARE
    ) -> None:
        self._changed, self._thorough = changed, thorough
        self._tensors = [(name, t) for name, t in named if t.layout is torch.strided and not t.is_inference()]
        self._states = [(t._version, t.data_ptr(), t.requires_grad) for _, t in self._tensors]
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        left_over: list[Tensor] = []
        for _, tensor in self._tensors:
            if tensor in changed or (thorough and tensor.nbytes <= limit):
                limit -= 0 if tensor in changed else tensor.nbytes
                self._copies[id(tensor)] = (tensor.data, tensor.detach().clone())
            else:
                left_over.append(tensor)
        self._norms = _norms(left_over) if thorough else []
        self._left_over = left_over

    def restore(self) -> None:
        """Put back what can be."""
        for (_, tensor), (version, place, needs_gradient) in zip(self._tensors, self._states, strict=True):
            if tensor.requires_grad != needs_gradient and tensor.is_leaf:
                tensor.requires_grad_(needs_gradient)
            saved = self._copies.get(id(tensor))
            if saved is None:
                continue
            where, values = saved
            if tensor.data_ptr() != place:
                tensor.data = where
                self._changed.add(tensor)
            if not _same(tensor, values):
                self._changed.add(tensor)
                with torch.no_grad():
                    tensor.copy_(values)
            elif tensor._version != version:
                self._changed.add(tensor)

    def refuse_lost(self) -> None:
        """Refuse what `restore` can't put back.

        Raises:
            LostStateError: With its name.
        """
        for (name, tensor), (version, place, _) in zip(self._tensors, self._states, strict=True):
            if id(tensor) not in self._copies and (tensor._version, tensor.data_ptr()) != (version, place):
                raise _lost(name)
        if self._norms and _norms(self._left_over) != self._norms:
            raise _lost("a frozen weight")


def _lost(name: str) -> LostStateError:
    return LostStateError(
        f"changes the tensor {name!r} in place",
        "change it in `on_train_batch_end`, which runs once, or make it a buffer",
    )


def _same(tensor: Tensor, values: Tensor) -> bool:
    """Bit for bit, also where they are nan."""
    if tensor.shape != values.shape or tensor.dtype != values.dtype:
        return False
    return torch.equal(tensor, values) or torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(values))


def _norms(tensors: Sequence[Any]) -> list[str]:
    floating = [t.detach() for t in tensors if t.is_floating_point()]
    return [float(norm).hex() for norm in torch._foreach_norm(floating)] if floating else []

"""Memory that is written to: arrays, tensors that are no state of a module, objects of ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.callbacks.multipass.state.records.record import Record


class Values(Record):
    """The values of a buffer (numpy array, bytearray, `array.array`); ``compared``: `restore` tells if they changed."""

    def __init__(self, values: Any, compared: bool = False) -> None:
        self._values, self._numpy, self.compared = values, hasattr(values, "flags"), compared
        self._before = values.copy() if self._numpy else values[:]

    def renewed(self) -> Record:
        """See `Record`."""
        return Values(self._values, self.compared)

    def restore(self) -> bool:
        """See `Record`."""
        changed = self.compared and _bytes(self._values) != _bytes(self._before)
        self._values[... if self._numpy else slice(None)] = self._before
        return bool(changed)


class TensorValues(Record):
    """The values of a tensor that is no state of the module."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._before = tensor, tensor.detach().clone()

    def renewed(self) -> Record:
        """See `Record`."""
        return TensorValues(self._tensor)

    def restore(self) -> bool:
        """See `Record`."""
        tensor, before = self._tensor, self._before
        alike = (tensor.shape, tensor.dtype) == (before.shape, before.dtype)
        if alike and torch.equal(tensor.nan_to_num(), before.nan_to_num()):
            return False
        if alike:  # by way of `data`: a graph may hold it, for which it is as it was
            tensor.data.copy_(before)
        else:
            tensor.data = before.clone()
        return True


class UncountedValues(Record):
    """The values of a tensor whose changes torch doesn't count: made in inference mode, or sparse."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        with self._mode():
            self._before = tensor.detach().clone()

    def _mode(self) -> torch.inference_mode:
        """That the tensor was made in: a sparse one can't take the place of one of the other mode."""
        return torch.inference_mode(self._tensor.is_inference())

    def renewed(self) -> Record:
        """See `Record`."""
        return self if self._same() else UncountedValues(self._tensor)

    def _same(self) -> bool:
        now, before = self._tensor, self._before
        if now.shape != before.shape or now.dtype != before.dtype:
            return False
        if now.layout is torch.strided:
            return torch.equal(now.nan_to_num(), before.nan_to_num())
        now, before = now.detach().coalesce(), before.coalesce()
        return torch.equal(now.indices(), before.indices()) and torch.equal(now.values(), before.values())

    def restore(self) -> bool:
        """See `Record`."""
        with self._mode(), torch.no_grad():
            if self._same():
                return False
            self._tensor.copy_(self._before)
        return True

    def restore_numbers(self) -> None:
        """See `Record`."""
        self.restore()


class Memory(Record):
    """The bytes of an object of ctypes."""

    def __init__(self, value: Any) -> None:
        self._value, self._before = value, bytes(value)

    def renewed(self) -> Record:
        """See `Record`."""
        return Memory(self._value)

    def restore(self) -> bool:
        """See `Record`."""
        changed = bytes(self._value) != self._before
        ctypes.memmove(ctypes.addressof(self._value), self._before, len(self._before))
        return changed


def _bytes(values: Any) -> bytes:
    return bytes(values) if isinstance(values, bytearray) else values.tobytes()  # type: ignore[no-any-return]

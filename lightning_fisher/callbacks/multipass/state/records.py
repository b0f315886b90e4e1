"""Single things that a `training_step` may change, as they are now: each knows how to put itself back."""

from __future__ import annotations

import collections
import copy
import ctypes
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = {bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device, torch.Size}
LARGE = 100_000  # items of a container beyond which only its ends are compared
# What `nn.Module` keeps in its `__dict__` beside a user's attributes.
OF_MODULES = set(vars(nn.Module())) - {"training"}
_HOOKS = sorted(name for name in OF_MODULES if "_hooks" in name and "backward" not in name)
_MISSING = object()


class Record:
    """Something as it was."""

    def restore(self) -> bool:
        """Put it back; whether it had changed."""
        raise NotImplementedError

    def restore_numbers(self) -> None:
        """Put back what counts once a step, where the passes of training are several: numbers and moving averages."""


class Namespace(Record):
    """A dictionary of attributes or of global variables; what is new goes.

    Args:
        names: The dictionary.
        only: The variables looked at; ``None``: all.
        apart: Names that are somebody else's.
    """

    def __init__(self, names: dict[str, Any], only: Iterable[str] | None = None, apart: Iterable[str] = ()) -> None:
        self._names, self._apart, self._length = names, apart, len(names)
        self._only = None if only is None else list(only)
        if self._only is not None:
            self._before = {name: names.get(name, _MISSING) for name in self._only}
        elif apart:
            self._before = {name: value for name, value in names.items() if name not in apart}
        else:
            self._before = dict(names)

    def restore(self) -> bool:
        """See `Record`."""
        names, before = self._names, self._before
        new: Iterable[str] = ()
        same = all(map(is_, map(names.get, before), before.values()))
        if same and (self._only is not None or len(names) == self._length):
            return False
        if self._only is None:
            new = [name for name in names if name not in before and name not in self._apart]
        for name in new:
            del names[name]
        changed = bool(new)
        for name, value in before.items():
            if names.get(name, _MISSING) is value:
                continue
            changed = True
            if value is _MISSING:
                del names[name]
            else:
                names[name] = value
        return changed

    def restore_numbers(self) -> None:
        """See `Record`."""
        if self._only is None:
            for name in self._names.keys() - self._before.keys() - set(self._apart):
                if counts_once(self._names[name]):
                    del self._names[name]
        for name, value in self._before.items():
            now = self._names.get(name, _MISSING)
            if now is not value and (counts_once(value) or is_moving_average(value, now)):
                self._names[name] = value


class Assigned(Record):
    """Attributes that are set by assignment: slots, those of classes, the contents of a closure's cell."""

    def __init__(self, owner: Any, values: dict[str, Any]) -> None:
        self._owner, self._values = owner, values

    def restore(self) -> bool:
        """See `Record`."""
        return self._restore(lambda value, now: True)

    def restore_numbers(self) -> None:
        """See `Record`."""
        self._restore(lambda value, now: counts_once(value) or is_moving_average(value, now))

    def _restore(self, wanted: Callable[[Any, Any], bool]) -> bool:
        changed = False
        for name, value in self._values.items():
            now = getattr(self._owner, name, _MISSING)
            if now is not value and wanted(value, now):
                changed = True
                if isinstance(self._owner, type):
                    setattr(self._owner, name, value)
                else:
                    object.__setattr__(self._owner, name, value)
        return changed


class Items(Record):
    """The items of a list or deque."""

    def __init__(self, items: Any) -> None:
        self._items, self._before = items, list(items)

    def restore(self) -> bool:
        """See `Record`."""
        if unchanged(self._items, self._before):
            return False
        self._items.clear()
        self._items.extend(self._before)
        return True

    def restore_numbers(self) -> None:
        """See `Record`."""
        if is_moving_average(self._before, self._items):
            self._items[:] = self._before


class Entries(Record):
    """The entries of a dictionary, in their order.

    Args:
        mapping: The dictionary.
        once: Whether its numbers count once a step: hyperparameters, learning rates.
    """

    def __init__(self, mapping: dict[Any, Any], once: bool = False) -> None:
        self._mapping, self._before, self._once = mapping, dict(mapping), once
        # The methods of the base class, whatever a subclass makes of them.
        self._kind: Any = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict

    def restore(self) -> bool:
        """See `Record`."""
        if unchanged(self._mapping, self._before):
            return False
        self._kind.clear(self._mapping)
        self._kind.update(self._mapping, self._before)
        return True

    def restore_numbers(self) -> None:
        """See `Record`."""
        if self._once:
            numbers = {key: value for key, value in self._before.items() if counts_once(value)}
            self._kind.update(self._mapping, numbers)
        elif is_moving_average(self._before, self._mapping):
            self._kind.update(self._mapping, self._before)


class Members(Record):
    """The members of a set."""

    def __init__(self, members: set[Any]) -> None:
        self._members, self._before = members, set(members)

    def restore(self) -> bool:
        """See `Record`."""
        if len(self._members) == len(self._before) and self._members == self._before:
            return False
        self._members.clear()
        self._members.update(self._before)
        return True


class Values(Record):
    """The values of a buffer (numpy array, bytearray, `array.array`); ``compared``: `restore` tells if they changed."""

    def __init__(self, values: Any, compared: bool = False) -> None:
        self._values, self._numpy, self.compared = values, hasattr(values, "flags"), compared
        self._before = values.copy() if self._numpy else values[:]

    def restore(self) -> bool:
        """See `Record`."""
        changed = self.compared and _bytes(self._values) != _bytes(self._before)
        self._values[... if self._numpy else slice(None)] = self._before
        return bool(changed)


class TensorValues(Record):
    """The values of a tensor that is no state of the module."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._before = tensor, tensor.detach().clone()

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


class Memory(Record):
    """The bytes of an object of ctypes."""

    def __init__(self, value: Any) -> None:
        self._value, self._before = value, bytes(value)

    def restore(self) -> bool:
        """See `Record`."""
        changed = bytes(self._value) != self._before
        ctypes.memmove(ctypes.addressof(self._value), self._before, len(self._before))
        return changed


class MetricState(Record):
    """The state of a torchmetrics object."""

    def __init__(self, metric: nn.Module) -> None:
        self._attributes = vars(metric)
        states = {name: value for name, value in self._attributes.items() if _is_metric_state(name, value)}
        self._states = {name: _copy(value) for name, value in states.items()}

    def restore(self) -> bool:
        """See `Record`."""
        self._attributes.update({name: _copy(value) for name, value in self._states.items()})
        return False


class Tables(Record):
    """The mode of a module, and which submodules, parameters, buffers and hooks it has."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._training = module, module.training
        self._held = [(table, dict(table)) for table in (module._modules, module._parameters) if table]
        hooks = vars(module)
        self._hooks = [(hooks[name], dict(hooks[name])) for name in _HOOKS if hooks[name]]
        self._empty = [hooks[name] for name in _HOOKS if not hooks[name]]
        self._empty += [table for table in (module._modules, module._parameters) if not table]
        self._buffers = list(module._buffers)

    def restore(self) -> bool:
        """See `Record`."""
        self._module.training = self._training
        if any(self._empty):
            for table in self._empty:
                table.clear()
        for table, before in (*self._held, *self._hooks):
            if not unchanged(table, before):
                table.clear()
                table.update(before)
        buffers = self._module._buffers
        if len(buffers) > len(self._buffers):
            for name in buffers.keys() - set(self._buffers):
                del buffers[name]
        return False


class Restored(Record):
    """Whatever a function puts back."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def restore(self) -> bool:
        """See `Record`."""
        self._restore()
        return False


class Nested(Record):
    """What is in a large container: looked at later only if it changed in the first steps.

    Args:
        records: Of what is in it.
        learn: Called once they have changed.
    """

    def __init__(self, records: list[Record], learn: Callable[[], None]) -> None:
        self._records, self._learn = records, learn
        for record in records:
            if isinstance(record, Values):  # it has to be known whether they change
                record.compared = True

    def restore(self) -> bool:
        """See `Record`."""
        changed = sum(record.restore() for record in self._records)
        if changed:
            self._learn()
        return bool(changed)

    def restore_numbers(self) -> None:
        """See `Record`."""
        for record in self._records:
            record.restore_numbers()


def _bytes(values: Any) -> bytes:
    return bytes(values) if isinstance(values, bytearray) else values.tobytes()  # type: ignore[no-any-return]


def unchanged(now: Any, before: Any) -> bool:
    """The same items, by identity; of very large containers the ends are."""
    if len(now) != len(before):
        return False
    if isinstance(before, dict):
        return all(map(is_, now, before)) and all(map(is_, now.values(), before.values()))
    if len(now) > LARGE:
        return now[0] is before[0] and now[-1] is before[-1]
    return all(map(is_, now, before))


def counts_once(value: Any) -> bool:
    """Whether a value is a number (or a moving average of numbers) that a step replaces."""
    return type(value) in PLAIN or isinstance(value, Tensor)


def is_moving_average(before: Any, now: Any) -> bool:
    """Whether a list, tuple or dictionary holds arrays each of which has been replaced by a new one of the same shape.

    A queue moves the tensors that it holds, and a memory of samples replaces some of them: these are none.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(value, now[key]) for key, value in before.items() if key in now]
    elif any(isinstance(before, kind) and isinstance(now, kind) for kind in (list, tuple)):
        pairs = list(zip(before, now, strict=False))
    else:
        return False
    if not len(pairs) == len(before) == len(now):
        return False
    arrays = [(old, new) for old, new in pairs if isinstance(old, Tensor) and old.is_floating_point() and old.ndim]
    held = {id(old) for old, _ in arrays}
    return bool(arrays) and all(
        isinstance(new, Tensor) and new.shape == old.shape and new.dtype == old.dtype and id(new) not in held
        for old, new in arrays
    )


def _is_metric_state(name: str, value: Any) -> bool:
    return name not in OF_MODULES and isinstance(
        value, (Tensor, bool, int, float, str, type(None), list, tuple, dict, set, collections.deque)
    )


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)

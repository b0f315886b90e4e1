"""Single things that a `training_step` may change, as they are now: each knows how to put itself back."""

from __future__ import annotations

import collections
import copy
import ctypes
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = {bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device, torch.Size}
LARGE = 100_000  # items of a container beyond which only its ends are compared
DEEP = 1_000  # items beyond which what is in them is looked at in the first steps only, unless it changes there
# What `nn.Module` keeps in its `__dict__` beside a user's attributes.
OF_MODULES = set(vars(nn.Module())) - {"training"}
_HOOKS = sorted(name for name in OF_MODULES if "_hooks" in name and "backward" not in name)
MISSING = object()


class Record:
    """Something as it was."""

    def restore(self) -> bool:
        """Put it back; whether it had changed."""
        raise NotImplementedError

    def restore_numbers(self) -> None:
        """Put back what counts once a step, where the passes of training are several: numbers and moving averages."""

    def renewed(self) -> Record | None:
        """A record of now: this one if nothing has changed; ``None`` if what is held may be other things by now."""
        raise NotImplementedError


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
            self._before = {name: names.get(name, MISSING) for name in self._only}
        elif apart:
            self._before = {name: value for name, value in names.items() if name not in apart}
        else:
            self._before = dict(names)

    def _same(self) -> bool:
        names, before = self._names, self._before
        same = all(map(is_, map(names.get, before), before.values()))
        return same and (self._only is not None or len(names) == self._length)

    def renewed(self) -> Record | None:
        """See `Record`."""
        if self._same():
            return self
        now = Namespace(self._names, self._only, self._apart)
        return now if differ_in_numbers(self._before, now._before) else None

    def restore(self) -> bool:
        """See `Record`."""
        names, before = self._names, self._before
        new: Iterable[str] = ()
        if self._same():
            return False
        if self._only is None:
            new = [name for name in names if name not in before and name not in self._apart]
        for name in new:
            del names[name]
        changed = bool(new)
        for name, value in before.items():
            if names.get(name, MISSING) is value:
                continue
            changed = True
            if value is MISSING:
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
            now = self._names.get(name, MISSING)
            if now is not value and (counts_once(value) or is_moving_average(value, now)):
                self._names[name] = value


class Assigned(Record):
    """Attributes that are set by assignment: slots, those of classes, the contents of a closure's cell."""

    def __init__(self, owner: Any, values: dict[str, Any]) -> None:
        self._owner, self._values = owner, values

    def renewed(self) -> Record | None:
        """See `Record`."""
        now = {name: _get(self._owner, name) for name in self._values}
        if all(map(is_, now.values(), self._values.values())):
            return self
        return Assigned(self._owner, now) if differ_in_numbers(self._values, now) else None

    def restore(self) -> bool:
        """See `Record`."""
        return self._restore(lambda value, now: True)

    def restore_numbers(self) -> None:
        """See `Record`."""
        self._restore(lambda value, now: counts_once(value) or is_moving_average(value, now))

    def _restore(self, wanted: Callable[[Any, Any], bool]) -> bool:
        changed = False
        for name, value in self._values.items():
            now = _get(self._owner, name)
            if now is not value and wanted(value, now):
                changed = True
                if value is MISSING:
                    object.__delattr__(self._owner, name)
                elif isinstance(self._owner, type):
                    setattr(self._owner, name, value)
                else:
                    object.__setattr__(self._owner, name, value)
        return changed


class Items(Record):
    """The items of a list or deque."""

    def __init__(self, items: Any) -> None:
        self._items, self._before = items, list(items)

    def renewed(self) -> Record | None:
        """See `Record`."""
        if unchanged(self._items, self._before):
            return self
        few = max(len(self._items), len(self._before)) <= DEEP
        return Items(self._items) if few and differ_in_numbers(self._before, self._items) else None

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

    def renewed(self) -> Record | None:
        """See `Record`."""
        if unchanged(self._mapping, self._before):
            return self
        few = max(len(self._mapping), len(self._before)) <= DEEP
        same = few and differ_in_numbers(self._before, self._mapping)
        return Entries(self._mapping, self._once) if same else None

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

    def _same(self) -> bool:
        return len(self._members) == len(self._before) and self._members == self._before

    def renewed(self) -> Record | None:
        """See `Record`."""
        return self if self._same() else None

    def restore(self) -> bool:
        """See `Record`."""
        if self._same():
            return False
        self._members.clear()
        self._members.update(self._before)
        return True


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


class MetricState(Record):
    """The state of a torchmetrics object.

    Args:
        metric: The metric.
        compared: Look whether values change that torch's version counters don't tell of (through ``.data``, by numpy).
        copied: The metrics in which they do; learns.
    """

    def __init__(self, metric: nn.Module, compared: bool, copied: dict[int, Any]) -> None:
        self._metric, self._compared, self._copied = metric, compared, copied
        self._attributes = vars(metric)
        self._held = {name: value for name, value in self._attributes.items() if _is_metric_state(name, value)}
        self._values = {name: _copy(value) for name, value in self._held.items()}
        self._versions = list(map(_version, self._held.values()))

    def _same(self) -> bool:
        """Whether nothing has changed, as far as torch tells."""
        now = [self._attributes.get(name, MISSING) for name in self._held]
        return (
            id(self._metric) not in self._copied
            and all(map(is_, now, self._held.values()))
            and list(map(_version, now)) == self._versions
            and all(map(_same_items, now, self._values.values()))
        )

    def renewed(self) -> Record:
        """See `Record`."""
        return self if self._same() else MetricState(self._metric, self._compared, self._copied)

    def restore(self) -> bool:
        """See `Record`."""
        if self._same():
            if not self._compared or all(map(_equal, self._held.values(), self._values.values())):
                return False
            self._copied[id(self._metric)] = self._metric
        for name, value in self._values.items():
            self._held[name] = self._attributes[name] = _copy(value)
        self._versions = list(map(_version, self._held.values()))
        return False


class Tables(Record):
    """The modes of modules, and which submodules, parameters, buffers and hooks they have."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []
        self._modes: list[bool] = []
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._empty: list[dict[str, Any]] = []
        self._buffers: list[tuple[dict[str, Any], list[str]]] = []

    def add(self, module: nn.Module) -> None:
        """Of this module, too."""
        attributes = vars(module)
        self._modules.append(module)
        self._modes.append(module.training)
        for table in (module._modules, module._parameters, *(attributes[name] for name in _HOOKS)):
            if table:
                self._tables.append((table, dict(table)))
            else:
                self._empty.append(table)
        self._buffers.append((module._buffers, list(module._buffers)))

    def add_buffers(self, module: nn.Module) -> None:
        """Which tensors its buffers are: those of a submodule of the root are looked after elsewhere."""
        self._tables.append((module._buffers, dict(module._buffers)))

    def _same(self) -> bool:
        if any(self._empty) or [module.training for module in self._modules] != self._modes:
            return False
        if any(len(now) != len(before) for now, before in (*self._tables, *self._buffers)):
            return False
        now, before = [table for table, _ in self._tables], [table for _, table in self._tables]
        names = map(is_, chain.from_iterable(now), chain.from_iterable(before))
        values = (chain.from_iterable(table.values() for table in tables) for tables in (now, before))
        return all(names) and all(map(is_, *values))

    def renewed(self) -> Record | None:
        """See `Record`."""
        return self if self._same() else None

    def restore(self) -> bool:
        """See `Record`."""
        if self._same():
            return False
        for module, training in zip(self._modules, self._modes, strict=True):
            if module.training is not training:
                module.training = training
        for table in self._empty:
            table.clear()
        for table, before in self._tables:
            if not unchanged(table, before):
                table.clear()
                table.update(before)
        for buffers, names in self._buffers:
            for name in buffers.keys() - set(names):
                del buffers[name]
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

    def renewed(self) -> Record | None:
        """See `Record`."""
        renewed = [record.renewed() for record in self._records]
        if all(map(is_, renewed, self._records)):
            return self
        complete = [record for record in renewed if record is not None]
        return Nested(complete, self._learn) if len(complete) == len(renewed) else None

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


def differ_in_numbers(before: Any, now: Any) -> bool:
    """Whether what is different holds nothing else: numbers, strings. In two dictionaries or two lists."""
    if isinstance(before, dict):
        pairs: Iterable[tuple[Any, Any]] = [(before.get(key), now.get(key)) for key in before.keys() | now.keys()]
    else:
        pairs = zip_longest(before, now)
    return all(a is b or all(type(v) in PLAIN or v is MISSING for v in (a, b)) for a, b in pairs)


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


def _get(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, MISSING)
    except ValueError:  # the cell of a variable that has been deleted
        return MISSING


def _is_metric_state(name: str, value: Any) -> bool:
    return name not in OF_MODULES and isinstance(
        value, (Tensor, bool, int, float, str, type(None), list, tuple, dict, set, collections.deque)
    )


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _same_items(now: Any, before: Any) -> bool:
    """Whether two containers hold the same; anything else is looked at elsewhere."""
    if isinstance(now, set):
        return bool(now == before)
    return not isinstance(now, (list, dict, collections.deque)) or unchanged(now, before)


def _version(value: Any) -> Any:
    """What grows with every change in place; something that no other is equal to where torch doesn't count."""
    if not isinstance(value, Tensor):
        return 0
    return object() if value.is_inference() else (value._version, value.data_ptr())


def _equal(value: Any, before: Any) -> bool:
    """Bit for bit, if they are tensors."""
    if not isinstance(value, Tensor):
        return True
    alike = value.shape == before.shape and value.dtype == before.dtype
    return alike and torch.equal(value.nan_to_num(), before.nan_to_num())

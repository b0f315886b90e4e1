"""The attributes of the modules a `training_step` runs through, and of the objects they hold."""

from __future__ import annotations

import array
import collections
import copy
import copyreg
import ctypes
import functools
import pickle
import sys
import threading
import types
import weakref
import zlib
from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_fisher.callbacks.multipass.state import reach
from lightning_fisher.callbacks.multipass.state.generators import GeneratorState, is_generator
from lightning_fisher.callbacks.multipass.state.records import (
    DEEP,
    MISSING,
    OF_MODULES,
    PLAIN,
    Assigned,
    Entries,
    Items,
    Members,
    Memory,
    MetricState,
    Namespace,
    Nested,
    Record,
    Tables,
    TensorValues,
    Values,
)
from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError, stand_in
from lightning_fisher.functional.evaluation.module_state import submodules

_CODE = (types.BuiltinFunctionType, types.ModuleType, property, staticmethod, classmethod)
_LIBRARIES = {
    *("lightning", "pytorch_lightning", "lightning_fabric", "lightning_fisher", "torchmetrics"),
    *("builtins", "threading", "_thread", "logging", "asyncio", "concurrent", "socket", "subprocess", "re"),
}
# Of torch's objects those that a training loop changes; others (processes, graphs, loaders) are left alone.
_OF_TORCH = ("torch.optim", "torch.quasirandom", "torch.distributions", "torch.amp", "torch.cuda.amp")
_OF_OPTIMIZERS = {"param_groups", "state", "defaults", "step"}
SMALL = 2**20  # bytes of an array of which a copy is taken every step
COMPARED = 2**26  # and beyond which it is only fingerprinted
LITTLE = 2**16  # bytes of an array of the data of which a copy is taken every step
SEARCHED = 10_000  # items of a container of the data beyond which it is not looked into


class AttributeSnapshot:
    """The attributes of every module in a tree, and of what they hold: objects, containers, metrics, generators.

    Numbers, strings, numpy arrays, lists, deques, dictionaries, sets, objects of Python classes and their classes,
    hyperparameters, learning rates and schedulers, random generators, metrics, hooks, closures and the global variables
    that a user's own functions name are put back, nested or not; containers and objects keep their identity. Iterators,
    files and loggers are exchanged during the pass. Tensors are listed in `tensors`. Objects of compiled classes aren't
    seen; changes of those are refused where they can be pickled.

    Args:
        module: The root of the tree.
        others: Other objects to begin with, by name: optimizers, schedulers, callbacks.
        shallow: Objects of which only the attributes are put back, and lists, dictionaries, sets, arrays and tensors
            among these that change in the first steps: the Trainer, the data.
        thorough: Look into large containers and arrays, and compare objects that can't be put back.
        deep: What the first steps have shown to change in large containers and arrays; learns.

    Attributes:
        tensors: ``(name, tensor)`` of the tensors found: attributes, and all of modules that are not submodules.
    """

    def __init__(
        self,
        module: nn.Module,
        others: Iterable[tuple[str, Any]] = (),
        shallow: Iterable[Any] = (),
        thorough: bool = False,
        deep: dict[int, Any] | None = None,
    ) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        self._thorough = thorough
        self._deep = {} if deep is None else deep
        self._learned = len(self._deep)
        self._arguments = module, list(others), list(shallow)
        self._own = type(module).__module__.partition(".")[0]
        self._seen: dict[int, Any] = {}
        self._tables = Tables()
        self._records: list[Record] = [self._tables]
        self._exchanged: list[tuple[Any, Any, Any]] = []  # container, key, stand-in
        self._opaque: list[tuple[str, Any, Any]] = []
        _, others, shallow = self._arguments
        for submodule in submodules(module):
            self._module(submodule, type(submodule).__name__, hidden=False)
        for name, other in others:
            self._visit(other, name)
        for other in shallow:
            self._shallow(other)

    # --- taking down ---------------------------------------------------------------------------------------------

    def _shallow(self, other: Any) -> None:
        attributes = vars(other)
        self._records.append(Namespace(attributes))
        held = [(f"{type(other).__name__}.{key}", value) for key, value in attributes.items() if _is_filled(value)]
        for name, value in held:
            if _is_small(value):
                self._data(value, name)
        if not (self._thorough or id(other) in self._deep):
            return
        first = len(self._records)
        for name, value in held:
            if not _is_small(value) and _bytes_in(value) <= COMPARED:
                self._data(value, name)
        learn = functools.partial(self._deep.__setitem__, id(other), other)
        self._records[first:] = [Nested(self._records[first:], learn)]

    def _data(self, value: Any, name: str) -> None:
        """A container, an array or a tensor of the data."""
        first = len(self.tensors)
        self._visit(value, name)
        tensors = [tensor for _, tensor in self.tensors[first:]]
        self._records += [TensorValues(t) for t in tensors if t.layout is torch.strided and not t.is_inference()]
        del self.tensors[first:]

    def _module(self, module: nn.Module, name: str, hidden: bool) -> None:
        if id(module) in self._seen:
            return
        self._seen[id(module)] = module
        self._tables.add(module)
        attributes = vars(module)
        if hidden:  # not a submodule of the root
            self._tables.add_buffers(module)
            own = [*module._parameters.items(), *module._buffers.items()]
            self.tensors += [(f"{name}.{key}", tensor) for key, tensor in own if tensor is not None]
            for key, child in module._modules.items():
                if child is not None:
                    self._module(child, f"{name}.{key}", hidden=True)
        if isinstance(module, Metric):
            self._records.append(MetricState(module, self._thorough, self._deep))
            return
        self._records.append(Namespace(attributes, apart=OF_MODULES))
        if not type(module).__module__.startswith("torch.nn."):
            for key, value in attributes.items():
                if key not in OF_MODULES:
                    self._visit(value, f"{name}.{key}", attributes, key)
            for kind in type(module).__mro__:
                if reach.is_users(kind.__module__, self._own):
                    self._visit(kind, kind.__name__)

    def _visit(self, value: Any, name: str, owner: Any = None, key: Any = None) -> None:
        kind = type(value)
        if kind in PLAIN or id(value) in self._seen or isinstance(value, _CODE):
            return
        if isinstance(value, nn.Module):
            self._module(value, name, hidden=True)
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors.append((name, value))
        elif isinstance(value, (list, collections.deque)):
            self._records.append(Items(value))
            self._items(value, enumerate(value), name)
        elif isinstance(value, dict):
            self._items(value, value.items(), name, Entries(value, once=kind.__name__ == "AttributeDict"))
        elif isinstance(value, set):
            self._records.append(Members(value))
            self._items(value, enumerate(value), name)
        elif isinstance(value, (tuple, frozenset)):
            self._items(None, enumerate(value), name)
        elif isinstance(value, (bytearray, array.array)):
            self._records.append(Values(value))
        elif isinstance(value, memoryview):
            self._visit(value.obj, name)
        elif isinstance(value, (ctypes._SimpleCData, ctypes.Structure, ctypes.Union, ctypes.Array)):
            self._records.append(Memory(value))
        elif isinstance(value, type):
            self._class(value, name)
        elif isinstance(value, types.FunctionType):
            self._function(value, name)
        elif isinstance(value, functools.partial):
            for child in (value.func, value.args, value.keywords):
                self._visit(child, name)
        elif isinstance(value, types.MethodType):
            self._visit(value.__func__, name)
            self._visit(value.__self__, name)
        elif isinstance(value, weakref.ref):
            self._visit(value(), name)
        elif isinstance(value, Optimizer):
            self._optimizer(value, name)
        elif is_generator(value):
            self._records.append(GeneratorState(value))
        elif _is_array(value):
            self._array(value, name)
        else:
            self._object(value, name, owner, key)

    def _items(self, owner: Any, items: Iterable[tuple[Any, Any]], name: str, record: Record | None = None) -> None:
        """What is in a container; ``record``: of the container itself, where a new entry is one that may change."""
        before = len(self._records)
        if record is not None:
            self._records.append(record)
        small = owner is None or len(owner) <= DEEP
        if small or self._thorough or id(owner) in self._deep:
            for key, value in items:
                if type(value) not in PLAIN and (small or self._thorough or not isinstance(value, Tensor)):
                    self._visit(value, f"{name}[{key!r}]", owner, key)
        if owner is not None and id(owner) not in self._deep and len(self._records) > before:  # it may grow
            learn = functools.partial(self._deep.__setitem__, id(owner), owner)
            self._records[before:] = [Nested(self._records[before:], learn)]
        if owner is not None and hasattr(owner, "__dict__"):
            self._records.append(Namespace(vars(owner)))

    def _optimizer(self, optimizer: Optimizer, name: str) -> None:
        """Groups, which state it has, attributes of a class of the user's; the state's tensors are its own affair."""
        groups = optimizer.param_groups
        self._records.append(Items(groups))
        for index, group in enumerate(groups):
            self._seen[id(group)] = group
            self._records += [Entries(group, once=True), Items(group["params"])]
            self._items(None, ((k, v) for k, v in group.items() if k != "params"), f"{name}.param_groups[{index}]")
        self._records.append(Entries(optimizer.state))
        if self._thorough or id(optimizer.state) in self._deep:  # hundreds of dictionaries, which hardly a step changes
            held = [Entries(state) for state in optimizer.state.values() if isinstance(state, dict)]
            learn = functools.partial(self._deep.__setitem__, id(optimizer.state), optimizer.state)
            self._records.append(Nested([*held], learn))
        attributes = vars(optimizer)
        self._records.append(Namespace(attributes))
        if not type(optimizer).__module__.startswith("torch.optim"):  # statistics that hooks on layers gather, say
            for key, inside in attributes.items():
                if key not in _OF_OPTIMIZERS:
                    self._visit(inside, f"{name}.{key}", attributes, key)

    def _array(self, value: Any, name: str) -> None:
        if value.dtype.hasobject:
            self._records.append(Values(value))
            self._items(None, enumerate(value.flat if value.dtype == object else ()), name)
        elif not value.flags.writeable:
            return
        elif value.nbytes <= SMALL or id(value) in self._deep:
            self._records.append(Values(value))
        elif self._thorough and value.nbytes <= COMPARED:
            learn = functools.partial(self._deep.__setitem__, id(value), value)
            self._records.append(Nested([Values(value, compared=True)], learn))
        elif self._thorough:
            self._opaque.append((name, value, _fingerprint(value)))

    def _object(self, value: Any, name: str, owner: Any, key: Any) -> None:
        other = stand_in(value, name)
        if other is not None:
            if isinstance(owner, (dict, list, collections.deque)):
                self._exchanged.append((owner, key, other))
            return
        module = type(value).__module__
        library = module.split(".")[0]
        known = library in _LIBRARIES and not isinstance(value, threading.local)
        if known or (library == "torch" and not module.startswith(_OF_TORCH)):
            return
        attributes = getattr(value, "__dict__", None)
        slots = {slot: getattr(value, slot, MISSING) for slot in _slots(type(value))}
        if slots:
            self._records.append(Assigned(value, slots))
        if attributes is not None:
            self._records.append(Namespace(attributes))
        for child, inside in [*slots.items(), *(attributes or {}).items()]:
            if type(inside) not in PLAIN and inside is not MISSING:
                self._visit(inside, f"{name}.{child}", attributes, child)
        if reach.is_users(module, self._own):
            self._visit(type(value), type(value).__name__)
        if not slots and not attributes and self._thorough:
            self._opaque.append((name, value, _fingerprint(value)))

    def _class(self, value: type, name: str) -> None:
        """A class of the user's, whose attributes count something, and what its methods reach."""
        if not reach.is_users(value.__module__, self._own):
            return
        data = {
            key: inside
            for key, inside in vars(value).items()
            if not key.startswith("__")
            and not isinstance(inside, (*_CODE, types.FunctionType, functools.partial))
            and not hasattr(type(inside), "__get__")
        }
        if data:
            self._records.append(Assigned(value, data))
        for key, inside in data.items():
            self._visit(inside, f"{name}.{key}")
        for key, function in reach.functions_of(value):
            self._visit(function, f"{name}.{key}")

    def _function(self, function: types.FunctionType, name: str) -> None:
        """What a function of the user's reaches."""
        if not reach.is_users(function.__module__, self._own):
            return
        for variable, cell in reach.cells(function):
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self._records.append(Assigned(cell, {"cell_contents": cell.cell_contents}))
            self._visit(cell.cell_contents, f"{name}.{variable}")
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._visit(value, name)
        if function.__dict__:
            self._records.append(Namespace(function.__dict__))
            self._items(None, function.__dict__.items(), name)
        read, written = reach.global_variables(function)
        if written:
            self._records.append(Namespace(function.__globals__, only=written))
        for variable in read:
            value = function.__globals__.get(variable)
            if isinstance(value, types.ModuleType):
                self._namespace(value)
            else:
                self._visit(value, variable)

    def _namespace(self, module: types.ModuleType) -> None:
        """The variables of a module of the user's that his functions name."""
        if id(module) in self._seen or not reach.is_users(module.__name__, self._own):
            return
        self._seen[id(module)] = module
        names = vars(module)
        own = [name for name, value in names.items() if not name.startswith("__") and not isinstance(value, _CODE)]
        self._records.append(Namespace(names, only=own))
        for name in own:
            self._visit(names[name], f"{module.__name__}.{name}")

    # --- putting back --------------------------------------------------------------------------------------------

    def exchange(self) -> None:
        """Put the stand-ins in place; `restore` takes them out."""
        for owner, key, other in self._exchanged:
            owner[key] = other

    def restore(self, since: AttributeSnapshot | None = None) -> None:
        """Put everything back; what is new goes.

        Args:
            since: Another snapshot, which everything is as in; only what is different in this one is put back then.
        """
        for record in self._differing(since):
            record.restore()

    def restore_numbers(self, since: AttributeSnapshot | None = None) -> None:
        """Put back numbers that are attributes, hyperparameters and learning rates: they count once a step."""
        for record in self._differing(since):
            record.restore_numbers()

    def alike(self, other: AttributeSnapshot) -> bool:
        """Whether both are of the same things, in one state or two."""
        return other._seen is self._seen

    def _differing(self, other: AttributeSnapshot | None) -> list[Record]:
        if other is None or not self.alike(other):
            return self._records
        return [mine for mine, record in zip(self._records, other._records, strict=True) if mine is not record]

    def again(self) -> AttributeSnapshot:
        """A snapshot of now: this one if nothing has changed; shares what hasn't."""
        if self._thorough or len(self._deep) != self._learned:
            return self._anew()
        renewed: list[Record] = []
        for record in self._records:
            now = record.renewed()
            if now is None:
                return self._anew()
            renewed.append(now)
        if all(map(is_, renewed, self._records)):
            return self
        found = copy.copy(self)
        found._records = renewed
        return found

    def _anew(self) -> AttributeSnapshot:
        module, others, shallow = self._arguments
        return AttributeSnapshot(module, others, shallow, self._thorough, self._deep)

    def refuse_lost(self) -> None:
        """Refuse what `restore` can't put back.

        Raises:
            LostStateError: With its name.
        """
        for name, value, before in self._opaque:
            if _fingerprint(value) != before:
                raise LostStateError(f"changes {name!r} ({type(value).__name__})", "do that in `on_train_batch_end`")


def _is_filled(value: Any) -> bool:
    return isinstance(value, (list, collections.deque, dict, set, Tensor)) or _is_array(value)


def _is_small(value: Any) -> bool:
    """Of the data: whether it is looked at every step."""
    if isinstance(value, Tensor) or _is_array(value):
        return int(value.nbytes) <= LITTLE
    values = value.values() if isinstance(value, dict) else value
    return len(value) <= DEEP and all(type(item) in PLAIN for item in values)


def _bytes_in(value: Any, depth: int = 3) -> float:
    """Of the arrays and tensors in a container, with a few more for each item; many if it is too long."""
    if isinstance(value, Tensor) or _is_array(value):
        return float(value.nbytes)
    if depth == 0 or not isinstance(value, (list, tuple, collections.deque, dict, set)):
        return 100.0
    if len(value) > SEARCHED:
        return float("inf")
    return sum(_bytes_in(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))


def _slots(kind: type) -> Iterator[str]:
    yield from copyreg._slotnames(kind)  # type: ignore[attr-defined]


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _fingerprint(value: Any) -> Any:
    """What differs once the content does, as far as that can be told."""
    if _is_array(value):
        words = value.flags.c_contiguous and value.nbytes % 8 == 0
        return int(value.reshape(-1).view("u8").sum()) if words else zlib.crc32(value.tobytes())
    try:
        return pickle.dumps(value)
    except Exception:
        return None

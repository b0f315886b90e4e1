"""The walk through what a `training_step` may change: which record is taken of which thing."""

from __future__ import annotations

import array
import collections
import contextvars
import copyreg
import ctypes
import functools
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_fisher.callbacks.multipass.state import places, reach
from lightning_fisher.callbacks.multipass.state.caches import CACHED, CachedFunction, remembered
from lightning_fisher.callbacks.multipass.state.exchange import Exchange
from lightning_fisher.callbacks.multipass.state.records.comparison import DEEP, PLAIN
from lightning_fisher.callbacks.multipass.state.records.containers import Entries, Items, Members, Nested
from lightning_fisher.callbacks.multipass.state.records.generators import GeneratorState, is_generator
from lightning_fisher.callbacks.multipass.state.records.metrics import MetricState
from lightning_fisher.callbacks.multipass.state.records.modules import OF_MODULES, Tables, TensorAttributes
from lightning_fisher.callbacks.multipass.state.records.names import Assigned, ContextValue, Namespace, Namespaces
from lightning_fisher.callbacks.multipass.state.records.record import MISSING, Record
from lightning_fisher.callbacks.multipass.state.records.values import Memory, TensorValues, UncountedValues, Values
from lightning_fisher.callbacks.multipass.state.sizes import (
    COMPARED,
    SMALL,
    bytes_in,
    fingerprint,
    is_array,
    is_filled,
    is_small,
)
from lightning_fisher.callbacks.multipass.state.stand_ins import stand_in
from lightning_fisher.functional.evaluation.state.layers import submodules

_LIBRARIES = {
    *("lightning", "pytorch_lightning", "lightning_fabric", "lightning_fisher", "torchmetrics"),
    *("builtins", "threading", "_thread", "logging", "asyncio", "concurrent", "socket", "subprocess", "re"),
}
# Of torch's objects those that a training loop changes; others (processes, graphs, loaders) are left alone.
_OF_TORCH = ("torch.optim", "torch.quasirandom", "torch.distributions", "torch.amp", "torch.cuda.amp")
_BOUND = (types.BuiltinFunctionType, types.MethodWrapperType)
_VIEWS: tuple[type, ...] = (types.MappingProxyType, type({}.keys()), type({}.values()), type({}.items()))
_COUNTING = (threading.local, threading.Semaphore, threading.Event)  # of a library, but with a state of the user's
_OF_OPTIMIZERS = {"param_groups", "state", "defaults", "step"}


class Walk:
    """Everything that is found from a module on, once, with a record of each thing.

    Args:
        module: See `AttributeSnapshot`.
        others: See `AttributeSnapshot`.
        shallow: See `AttributeSnapshot`.
        thorough: See `AttributeSnapshot`.
        deep: See `AttributeSnapshot`.

    Attributes:
        records: What puts itself back.
        tensors: ``(name, tensor)`` of the tensors found.
        exchange: What an extra pass must not use.
        opaque: ``(name, value, fingerprint)`` of what can't be put back, but compared.
        seen: Everything that was found, by its id.
        modules: The modules among it.
    """

    def __init__(
        self,
        module: nn.Module,
        others: Iterable[tuple[str, Any]],
        shallow: Iterable[Any],
        thorough: bool,
        deep: dict[int, Any],
    ) -> None:
        self._thorough, self._deep = thorough, deep
        self._own = type(module).__module__.partition(".")[0]
        self._tables, self._on_tensors, self._layers = Tables(), TensorAttributes(), Namespaces()
        self.records: list[Record] = [self._tables, self._on_tensors, self._layers]
        self.tensors: list[tuple[str, Tensor]] = []
        self.exchange = Exchange()
        self.opaque: list[tuple[str, Any, Any]] = []
        self.seen: dict[int, Any] = {}
        self.modules: list[nn.Module] = []
        for submodule in submodules(module):
            self._module(submodule, type(submodule).__name__, hidden=False)
        for name, other in others:
            self._visit(other, name)
        for other in shallow:
            self._shallow(other)

    def _shallow(self, other: Any) -> None:
        attributes = vars(other)
        self.records.append(Namespace(attributes))
        for key, value in list(attributes.items()):
            if is_generator(value):
                self._visit(value, f"{type(other).__name__}.{key}")
        held = [(f"{type(other).__name__}.{key}", value) for key, value in list(attributes.items()) if is_filled(value)]
        for name, value in held:
            if is_small(value):
                self._data(value, name)
        if not (self._thorough or id(other) in self._deep):
            return
        first = len(self.records)
        for name, value in held:
            if not is_small(value) and bytes_in(value) <= COMPARED:
                self._data(value, name)
        learn = functools.partial(self._deep.__setitem__, id(other), other)
        self.records[first:] = [Nested(self.records[first:], learn)]

    def _data(self, value: Any, name: str) -> None:
        """A container, an array or a tensor of the data."""
        first = len(self.tensors)
        self._visit(value, name)
        tensors = [tensor for _, tensor in self.tensors[first:]]
        self.records += [TensorValues(t) for t in tensors if t.layout is torch.strided and not t.is_inference()]
        del self.tensors[first:]

    def _module(self, module: nn.Module, name: str, hidden: bool) -> None:
        if id(module) in self.seen:
            return
        self.seen[id(module)] = module
        self.modules.append(module)
        self._tables.add(module)
        for held in self._on_tensors.add(module):
            self._items(None, held.items(), f"a tensor of {name}")
        attributes = vars(module)
        if hidden:  # not a submodule of the root
            self._tables.add_buffers(module)
            own = [*module._parameters.items(), *module._buffers.items()]
            self.tensors += [(f"{name}.{key}", tensor) for key, tensor in own if tensor is not None]
            for key, child in list(module._modules.items()):
                if child is not None:
                    self._module(child, f"{name}.{key}", hidden=True)
        if isinstance(module, Metric):
            self.records.append(MetricState(module, self._thorough, self._deep))
            return
        own_names = Namespace(attributes, apart=OF_MODULES)
        if type(module).__module__.startswith("torch.nn."):
            self._layers.add(own_names)
            for key, value in list(attributes.items()):
                if key not in OF_MODULES and type(value) in (list, dict):  # the names in a ParameterDict
                    self._visit(value, f"{name}.{key}")
            return
        self.records.append(own_names)
        for key, value in list(attributes.items()):
            if key not in OF_MODULES and type(value) not in PLAIN:
                self._visit(value, f"{name}.{key}", places.entry(attributes, key))
        for kind in type(module).__mro__:
            if reach.is_users(kind.__module__, self._own):
                self._visit(kind, kind.__name__)

    def _visit(self, value: Any, name: str, place: places.Place | None = None) -> None:
        kind = type(value)
        if kind in PLAIN:
            return
        if id(value) in self.seen:
            if place is not None:
                self.exchange.also(place, value)
            return
        if isinstance(value, _BOUND):
            self._bound(value, name, place)
            return
        if isinstance(value, reach.CODE):
            return
        if isinstance(value, nn.Module):
            self._module(value, name, hidden=True)
            return
        self.seen[id(value)] = value
        if isinstance(value, Tensor):
            if value.is_inference() or value.layout is torch.sparse_coo:
                self.records.append(UncountedValues(value))
            else:
                self.tensors.append((name, value))
        elif isinstance(value, (list, collections.deque)):
            self.records.append(Items(value))
            self._items(value, enumerate(value), name)
        elif isinstance(value, dict):
            self._items(value, value.items(), name, Entries(value, once=kind.__name__ == "AttributeDict"))
        elif isinstance(value, set):
            self.records.append(Members(value))
            self._items(value, enumerate(value), name)
        elif isinstance(value, tuple) and place is not None:
            for at, item in zip(places.items_of(value, place), value, strict=True):
                self._visit(item, f"{name}[{at[-1]}]", at)
        elif isinstance(value, (tuple, frozenset)):
            self._items(None, enumerate(value), name)
        elif isinstance(value, _VIEWS):
            viewed: Any = getattr(value, "mapping", value)
            self._items(None, dict(viewed).items(), name)
        elif isinstance(value, (bytearray, array.array)):
            self.records.append(Values(value))
        elif isinstance(value, memoryview):
            self._visit(value.obj, name)
        elif isinstance(value, (ctypes._SimpleCData, ctypes.Structure, ctypes.Union, ctypes.Array)):
            self.records.append(Memory(value))
        elif isinstance(value, type):
            if reach.is_users(value.__module__, self._own):
                self._take(reach.of_class(value, name, self._own))
        elif isinstance(value, types.FunctionType):
            if reach.is_users(value.__module__, self._own):
                self._take(reach.of_function(value, name))
        elif isinstance(value, types.CellType):
            self.records.append(Assigned(value, {"cell_contents": value.cell_contents}))
            self._visit(value.cell_contents, name, places.attribute(value, "cell_contents"))
        elif isinstance(value, functools.partial):
            self._visit(value.func, name, places.argument(value, 0))
            self._visit(value.args, name, places.argument(value, 1))
            self._visit(value.keywords, name)
        elif isinstance(value, CACHED) and place is not None and reach.is_users(value.__module__, self._own):
            self.exchange.add(place, value, CachedFunction(value))
            self._visit(value.__wrapped__, name)
            objects = remembered(value)
            if len(objects) <= DEEP or self._thorough:
                self._items(None, enumerate(objects), name)
        elif isinstance(value, contextvars.ContextVar):
            self.records.append(ContextValue(value))
            self._visit(value.get(None), value.name)
        elif isinstance(value, types.MethodType):
            self._visit(value.__func__, name)
            self._visit(value.__self__, name)
        elif isinstance(value, weakref.ref):
            self._visit(value(), name)
        elif isinstance(value, Optimizer):
            self._optimizer(value, name)
        elif is_generator(value):
            self.records.append(GeneratorState(value))
        elif is_array(value):
            self._array(value, name)
        else:
            self._object(value, name, place)

    def _items(self, owner: Any, items: Iterable[tuple[Any, Any]], name: str, record: Record | None = None) -> None:
        """What is in a container; ``record``: of the container itself, where a new entry is one that may change."""
        before = len(self.records)
        if record is not None:
            self.records.append(record)
        small = owner is None or len(owner) <= DEEP
        if small or self._thorough or id(owner) in self._deep:
            for key, value in list(items):  # reading an attribute may fill in others
                if type(value) not in PLAIN and (small or self._thorough or not isinstance(value, Tensor)):
                    place = None if owner is None or isinstance(owner, set) else places.entry(owner, key)
                    self._visit(value, f"{name}[{key!r}]", place)
        if owner is not None and id(owner) not in self._deep and len(self.records) > before:  # it may grow
            learn = functools.partial(self._deep.__setitem__, id(owner), owner)
            self.records[before:] = [Nested(self.records[before:], learn)]
        if owner is not None and hasattr(owner, "__dict__"):
            self.records.append(Namespace(vars(owner)))

    def _optimizer(self, optimizer: Optimizer, name: str) -> None:
        """Groups, which state it has and in the first steps its tensors, attributes of a class of the user's."""
        groups = optimizer.param_groups
        self.records.append(Items(groups))
        for index, group in enumerate(groups):
            self.seen[id(group)] = group
            self.records += [Entries(group, once=True), Items(group["params"])]
            self._items(None, ((k, v) for k, v in group.items() if k != "params"), f"{name}.param_groups[{index}]")
        self.records.append(Entries(optimizer.state))
        if self._thorough or id(optimizer.state) in self._deep:  # hundreds of dictionaries, which hardly a step changes
            held = [Entries(state) for state in optimizer.state.values() if isinstance(state, dict)]
            learn = functools.partial(self._deep.__setitem__, id(optimizer.state), optimizer.state)
            self.records.append(Nested([*held], learn))
            states = ((key, value) for state in optimizer.state.values() for key, value in state.items())
            self.tensors += [(f"{name}.state[…][{key!r}]", t) for key, t in states if isinstance(t, Tensor)]
        attributes = vars(optimizer)
        self.records.append(Namespace(attributes))
        if not type(optimizer).__module__.startswith("torch.optim"):  # statistics that hooks on layers gather, say
            for key, inside in list(attributes.items()):
                if key not in _OF_OPTIMIZERS:
                    self._visit(inside, f"{name}.{key}", places.entry(attributes, key))

    def _array(self, value: Any, name: str) -> None:
        if value.dtype.hasobject:
            self.records.append(Values(value))
            self._items(None, enumerate(value.flat if value.dtype == object else ()), name)
        elif not value.flags.writeable:
            return
        elif value.nbytes <= SMALL or id(value) in self._deep:
            self.records.append(Values(value))
        elif self._thorough and value.nbytes <= COMPARED:
            learn = functools.partial(self._deep.__setitem__, id(value), value)
            self.records.append(Nested([Values(value, compared=True)], learn))
        elif self._thorough:
            self.opaque.append((name, value, fingerprint(value)))

    def _bound(self, value: Any, name: str, place: places.Place | None) -> None:
        """A method of a list, a generator, an iterator that is held in place of it."""
        owner = value.__self__
        if owner is None or isinstance(owner, (type, types.ModuleType)):
            return
        other = stand_in(owner, name)
        if other is None:
            self._visit(owner, name)
        else:
            self.seen[id(value)] = value
            self._exchange(value, getattr(other, value.__name__), name, place, owner)

    def _exchange(self, value: Any, other: Any, name: str, place: places.Place | None, advances: Any) -> None:
        """``other`` in its place during a pass; where that can't be, it is compared."""
        if place is not None:
            self.exchange.add(place, value, other)
        elif self._thorough:
            self.opaque.append((name, advances, fingerprint(advances)))

    def _object(self, value: Any, name: str, place: places.Place | None) -> None:
        other = stand_in(value, name)
        if other is not None:
            self._exchange(value, other, name, place, value)
            return
        module = type(value).__module__
        if module.startswith("torch.utils.data."):  # a loader, a sampler: what it draws with, not its data
            for key in ("generator", "sampler", "batch_sampler"):
                self._visit(getattr(value, key, None), f"{name}.{key}")
            return
        library = module.split(".")[0]
        known = library in _LIBRARIES and not isinstance(value, _COUNTING)
        if known or (library == "torch" and not module.startswith(_OF_TORCH)):
            return
        attributes = getattr(value, "__dict__", None)
        slots = {slot: getattr(value, slot, MISSING) for slot in _slots(type(value))}
        if slots:
            self.records.append(Assigned(value, slots))
        if attributes is not None:
            self.records.append(Namespace(attributes))
        for child, inside in slots.items():
            if inside is not MISSING:
                self._visit(inside, f"{name}.{child}", places.attribute(value, child))
        for child, inside in list((attributes or {}).items()):
            if type(inside) not in PLAIN:
                self._visit(inside, f"{name}.{child}", places.entry(attributes, child))
        if reach.is_users(module, self._own):
            self._visit(type(value), type(value).__name__)
        if not slots and not attributes and self._thorough:
            self.opaque.append((name, value, fingerprint(value)))

    def _take(self, found: Iterable[reach.Found]) -> None:
        """What code reaches: records, and values by name."""
        for item in found:
            if isinstance(item, Record):
                self.records.append(item)
                continue
            name, value, place = item
            if not isinstance(value, types.ModuleType):
                self._visit(value, name, place)
            elif id(value) not in self.seen and reach.is_users(value.__name__, self._own):
                self.seen[id(value)] = value
                self._take(reach.of_namespace(value))


def _slots(kind: type) -> Iterator[str]:
    yield from copyreg._slotnames(kind)  # type: ignore[attr-defined]

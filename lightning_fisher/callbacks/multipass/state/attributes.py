"""The attributes of the modules a `training_step` runs through, and of the objects they hold."""

from __future__ import annotations

import array
import collections
import copy
import copyreg
import functools
import pickle
import sys
import types
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_fisher.callbacks.multipass.state.generators import restorer
from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError, stand_in

_PLAIN = {bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device, torch.Size}
_CODE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    property,
    staticmethod,
    classmethod,
    functools.partial,
)
_LIBRARIES = {
    "torch",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
    "torchmetrics",
    "builtins",
    "threading",
    "_thread",
}
_OF_MODULES = set(vars(nn.Module())) - {"training"}  # hooks, parameters, buffers, submodules: looked at by themselves
LARGE = 20_000  # items of a container beyond which only its ends are compared
SMALL = 2**20  # bytes of an array of which a copy is taken
DEEP = 1_000  # items beyond which what is in them is not looked at


class AttributeSnapshot:
    """The attributes of every module in a tree, and of what they hold: objects, containers, metrics, generators.

    Numbers, strings, numpy arrays, lists, deques, dictionaries, sets, objects of Python classes, hyperparameters,
    learning rates and schedulers, random generators and metrics are put back, nested or not; containers and objects
    keep their identity. Iterators, files and loggers are exchanged during the pass. Tensors are listed in `tensors`.
    What is in closures, module-level variables and objects of compiled classes is not seen; changes of the latter are
    refused where they can be pickled.

    Args:
        module: The root of the tree.
        others: Other objects to begin with, by name: optimizers, schedulers.
        thorough: Compare objects that can't be put back, too.

    Attributes:
        tensors: ``(name, tensor)`` of the tensors found: attributes, and all of modules that are not submodules.
    """

    def __init__(self, module: nn.Module, others: Iterable[tuple[str, Any]] = (), thorough: bool = False) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        self._thorough = thorough
        self._seen: dict[int, Any] = {}
        self._owners: list[tuple[dict[str, Any], dict[str, Any], bool]] = []  # attributes, as they were, whether once
        self._slots: list[tuple[Any, dict[str, Any]]] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._lists: list[tuple[Any, list[Any]]] = []
        self._dicts: list[tuple[Any, dict[Any, Any], bool]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._metrics: list[tuple[Metric, dict[str, Any]]] = []
        self._modules: list[tuple[nn.Module, bool, dict[str, Any], dict[str, Any]]] = []
        self._generators: list[Any] = []
        self._exchanged: list[tuple[Any, Any, Any]] = []  # container, key, stand-in
        self._opaque: list[tuple[str, Any, Any]] = []
        for submodule in module.modules():
            self._module(submodule, type(submodule).__name__, hidden=False)
        for name, other in others:
            self._visit(other, name)

    # --- taking down ---------------------------------------------------------------------------------------------

    def _module(self, module: nn.Module, name: str, hidden: bool) -> None:
        if id(module) in self._seen:
            return
        self._seen[id(module)] = module
        self._modules.append((module, module.training, dict(module._modules), dict(module._parameters)))
        attributes = vars(module)
        if hidden:  # not a submodule of the root
            own = [*module._parameters.items(), *module._buffers.items()]
            self.tensors += [(f"{name}.{key}", tensor) for key, tensor in own if tensor is not None]
            for key, child in module._modules.items():
                if child is not None:
                    self._module(child, f"{name}.{key}", hidden=True)
        if isinstance(module, Metric):
            states = {key: value for key, value in attributes.items() if _is_metric_state(key, value)}
            self._metrics.append((module, {key: _copy(value) for key, value in states.items()}))
        elif not type(module).__module__.startswith("torch.nn."):
            before = {key: value for key, value in attributes.items() if key not in _OF_MODULES}
            self._owners.append((attributes, before, True))
            for key, value in before.items():
                self._visit(value, f"{name}.{key}", attributes, key)

    def _visit(self, value: Any, name: str, owner: Any = None, key: Any = None) -> None:
        kind = type(value)
        if kind in _PLAIN or id(value) in self._seen or isinstance(value, _CODE):
            return
        if isinstance(value, nn.Module):
            self._module(value, name, hidden=True)
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors.append((name, value))
        elif isinstance(value, (list, collections.deque)):
            self._lists.append((value, list(value)))
            self._items(value, enumerate(value), name)
        elif isinstance(value, dict):
            self._dicts.append(
                (value, dict(value), isinstance(value, collections.Counter) or kind.__name__ != "AttributeDict")
            )
            self._items(value, value.items(), name)
        elif isinstance(value, set):
            self._sets.append((value, set(value)))
            self._items(value, enumerate(value), name)
        elif isinstance(value, (tuple, frozenset)):
            self._items(None, enumerate(value), name)
        elif isinstance(value, (bytearray, array.array)):
            self._arrays.append((value, value[:]))
        elif isinstance(value, type):
            self._class(value, name)
        elif isinstance(value, types.MethodType):
            self._visit(value.__self__, name)
        elif isinstance(value, Optimizer):
            for index, group in enumerate(value.param_groups):
                self._dicts.append((group, dict(group), False))
                self._seen[id(group)] = group
                self._items(group, ((k, v) for k, v in group.items() if k != "params"), f"{name}.param_groups[{index}]")
        elif (restore := restorer(value)) is not None:
            self._generators.append(restore)
        elif _is_array(value):
            if value.nbytes <= SMALL and value.flags.writeable:
                self._arrays.append((value, value.copy()))
            elif value.flags.writeable and self._thorough:
                self._opaque.append((name, value, _fingerprint(value)))
        else:
            self._object(value, name, owner, key)

    def _items(self, owner: Any, items: Iterable[tuple[Any, Any]], name: str) -> None:
        if owner is None or len(owner) <= DEEP:
            for key, value in items:
                if type(value) not in _PLAIN:
                    self._visit(value, f"{name}[{key!r}]", owner, key)
        if owner is not None and hasattr(owner, "__dict__"):
            self._owners.append((vars(owner), dict(vars(owner)), True))

    def _object(self, value: Any, name: str, owner: Any, key: Any) -> None:
        other = stand_in(value, name)
        if other is not None:
            if isinstance(owner, (dict, list, collections.deque)):
                self._exchanged.append((owner, key, other))
            return
        library = type(value).__module__.split(".")[0]
        if library in _LIBRARIES and not type(value).__module__.startswith("torch.optim"):
            return
        attributes = getattr(value, "__dict__", None)
        slots = {slot: getattr(value, slot) for slot in _slots(type(value)) if hasattr(value, slot)}
        if slots:
            self._slots.append((value, slots))
        if attributes is not None:
            self._owners.append((attributes, dict(attributes), True))
        for child, inside in [*slots.items(), *(attributes or {}).items()]:
            if type(inside) not in _PLAIN:
                self._visit(inside, f"{name}.{child}", attributes, child)
        if not slots and not attributes and self._thorough:
            self._opaque.append((name, value, _fingerprint(value)))

    def _class(self, value: type, name: str) -> None:
        """A class of the user's, whose attributes count something."""
        if str(value.__module__).split(".")[0] in _LIBRARIES | set(sys.stdlib_module_names):
            return
        data = {
            key: inside
            for key, inside in vars(value).items()
            if not key.startswith("__") and not isinstance(inside, _CODE) and not hasattr(type(inside), "__get__")
        }
        self._classes.append((value, data))
        for key, inside in data.items():
            self._visit(inside, f"{name}.{key}")

    # --- putting back --------------------------------------------------------------------------------------------

    def exchange(self) -> None:
        """Put the stand-ins in place; `restore` takes them out."""
        for owner, key, other in self._exchanged:
            owner[key] = other

    def restore(self) -> None:
        """Put everything back; what is new goes."""
        for module, training, children, parameters in self._modules:
            module.training = training
            _put_back(module._modules, children)
            _put_back(module._parameters, parameters)
        for metric, states in self._metrics:
            vars(metric).update({name: _copy(value) for name, value in states.items()})
        for attributes, before, _ in self._owners:
            _put_back(attributes, before, _OF_MODULES)
        for owner, slots in self._slots:
            for name, value in slots.items():
                if getattr(owner, name, _slots) is not value:
                    object.__setattr__(owner, name, value)
        for kind, data in self._classes:
            for name, value in data.items():
                if vars(kind).get(name, _slots) is not value:
                    setattr(kind, name, value)
        for items, before_items in self._lists:
            if not _unchanged(items, before_items):
                items.clear()
                items.extend(before_items)
        for mapping, before, _ in self._dicts:
            if not _unchanged(mapping, before):
                _dict_of(mapping).clear(mapping)
                _dict_of(mapping).update(mapping, before)
        for members, before_members in self._sets:
            if len(members) != len(before_members) or members != before_members:
                members.clear()
                members.update(before_members)
        for values, before_values in self._arrays:
            values[... if _is_array(values) else slice(None)] = before_values
        for restore in self._generators:
            restore()

    def restore_numbers(self) -> None:
        """Put back numbers that are attributes, hyperparameters and learning rates: they count once a step."""
        for attributes, before, _ in self._owners:
            for name in attributes.keys() - before.keys() - _OF_MODULES:
                if _is_number(attributes[name]):
                    del attributes[name]
            for name, value in before.items():
                if _is_number(value) and attributes.get(name, _slots) is not value:
                    attributes[name] = value
        for owner, slots in self._slots:
            for name, value in slots.items():
                if _is_number(value) and getattr(owner, name, _slots) is not value:
                    object.__setattr__(owner, name, value)
        for mapping, before, many in self._dicts:
            if not many:
                numbers = {key: value for key, value in before.items() if _is_number(value)}
                _dict_of(mapping).update(mapping, numbers)
        for kind, data in self._classes:
            for name, value in data.items():
                if _is_number(value) and vars(kind).get(name, _slots) is not value:
                    setattr(kind, name, value)

    def refuse_lost(self) -> None:
        """Refuse what `restore` can't put back.

        Raises:
            LostStateError: With its name.
        """
        for name, value, before in self._opaque:
            if _fingerprint(value) != before:
                raise LostStateError(f"changes {name!r} ({type(value).__name__})", "do that in `on_train_batch_end`")


def _put_back(attributes: dict[str, Any], before: dict[str, Any], apart: Iterable[str] = ()) -> None:
    if len(attributes) != len(before) or any(attributes.get(k, _slots) is not v for k, v in before.items()):
        for name in attributes.keys() - before.keys() - set(apart):
            del attributes[name]
        attributes.update(before)


def _unchanged(now: Any, before: Any) -> bool:
    """The same items, by identity."""
    if len(now) != len(before):
        return False
    if isinstance(before, dict):
        return all(a is b and now[a] is before[b] for a, b in zip(now, before, strict=True))
    if len(now) > LARGE:
        return now[0] is before[0] and now[-1] is before[-1]
    return all(a is b for a, b in zip(now, before, strict=True))


def _dict_of(mapping: dict[Any, Any]) -> Any:
    """Whose methods change it, whatever a subclass makes of them."""
    return collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict


def _slots(kind: type) -> Iterator[str]:
    yield from copyreg._slotnames(kind)  # type: ignore[attr-defined]


def _is_number(value: Any) -> bool:
    """What counts once a step: a moving average of numbers is one, too."""
    return type(value) in _PLAIN or isinstance(value, Tensor)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _fingerprint(value: Any) -> Any:
    """What differs once the content does, as far as that can be told."""
    if _is_array(value):
        return zlib.crc32(value.tobytes())
    try:
        return pickle.dumps(value)
    except Exception:
        return None


def _is_metric_state(name: str, value: Any) -> bool:
    return name not in _OF_MODULES and isinstance(
        value, (Tensor, bool, int, float, str, type(None), list, tuple, dict, set, collections.deque)
    )


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)

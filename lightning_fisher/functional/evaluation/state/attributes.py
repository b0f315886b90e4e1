"""Attributes of modules, their containers and hooks, put back after a pass."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_fisher.functional.evaluation.state.layers import submodules

LARGE = 20_000  # items of a container that is looked at
DEPTH = 3  # of containers in containers
# Parameters, buffers, hooks, modes: looked at by themselves; forward passes are replaced while one is watched.
_OF_MODULES = set(vars(nn.Module())) | {"forward"}
_TABLES = [*sorted(name for name in _OF_MODULES if "_hooks" in name), "_non_persistent_buffers_set"]
_CONTAINERS = {
    *(list, dict, set),
    *(collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter),
}


class Attributes:
    """What submodules hold under which name, what is in their lists, dictionaries and sets, and their hooks.

    Hugging Face's models install hooks in their first pass and note it in an attribute; either without the other would
    install them again. Which buffers there are, too: a mask may be registered by the pass that first needs it.
    """

    def __init__(self, module: nn.Module) -> None:
        tree = submodules(module)
        self._held = [(submodule, type(submodule), _own(vars(submodule))) for submodule in tree]
        self._containers: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for *_, held in self._held:
            for value in held.values():
                self._look_into(value, seen)
        self._tables: list[tuple[nn.Module, type, Any, Any]] = []
        self._empty: list[tuple[nn.Module, type, Any]] = []
        self._buffers: list[tuple[nn.Module, type, Any, tuple[str, ...]]] = []
        for submodule in tree:
            attributes, kind = vars(submodule), type(submodule)
            for name in _TABLES:
                table = attributes.get(name)
                if table:
                    self._tables.append((submodule, kind, table, copy.copy(table)))
                elif table is not None:
                    self._empty.append((submodule, kind, table))
            buffers = attributes.get("_buffers")
            if isinstance(buffers, dict):  # not those of scripted code, which registers none
                self._buffers.append((submodule, kind, buffers, tuple(buffers)))

    def _look_into(self, value: Any, seen: set[int], depth: int = DEPTH) -> None:
        """Containers, and those in them."""
        if type(value) not in _CONTAINERS or len(value) > LARGE or id(value) in seen:
            return
        seen.add(id(value))
        self._containers.append((value, copy.copy(value)))
        if depth and type(value) is not set:
            for item in value.values() if isinstance(value, dict) else value:
                self._look_into(item, seen, depth - 1)

    def restore(self) -> None:
        """Put everything back; what is new goes."""
        for submodule, kind, held in self._held:
            if type(submodule) is not kind:  # a lazy layer has become what it is
                continue
            attributes = vars(submodule)
            now = _own(attributes)
            if len(now) != len(held) or any(now.get(name, Attributes) is not value for name, value in held.items()):
                for name in now.keys() - held.keys():
                    del attributes[name]
                attributes.update(held)
        for container, before in self._containers:
            _refill(container, before)
        for submodule, kind, table, before in self._tables:
            if type(submodule) is kind:
                _refill(table, before)
        for submodule, kind, table in self._empty:
            if table and type(submodule) is kind:
                table.clear()
        for submodule, kind, buffers, names in self._buffers:
            if len(buffers) > len(names) and type(submodule) is kind:
                for name in buffers.keys() - set(names):
                    del buffers[name]


def _refill(container: Any, before: Any) -> None:
    if not _same(container, before):
        container.clear()
        container.update(before) if isinstance(container, (dict, set)) else container.extend(before)


def _same(now: Any, before: Any) -> bool:
    """The same items, by identity: tensors have no truth."""
    if len(now) != len(before):
        return False
    if isinstance(before, set):
        return bool(now == before)
    one, other = (iter(c.items()) if isinstance(c, dict) else ((0, item) for item in c) for c in (now, before))
    return all(a is b and (k is j or k == j) for (k, a), (j, b) in zip(one, other, strict=True))


def _own(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _OF_MODULES}


@contextmanager
def preserved_attributes(module: nn.Module) -> Iterator[Attributes]:
    """Restore on the way out what a forward pass keeps in attributes: activations, counters, lists of them."""
    attributes = Attributes(module)
    try:
        yield attributes
    finally:
        attributes.restore()

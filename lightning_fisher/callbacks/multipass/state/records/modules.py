"""What makes up a module beside its attributes: its mode, submodules, parameters, buffers and hooks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import is_
from typing import Any

from torch import nn

from lightning_fisher.callbacks.multipass.state.records.comparison import counts_once, differ_in_numbers, unchanged
from lightning_fisher.callbacks.multipass.state.records.record import Record

# What `nn.Module` keeps in its `__dict__` beside a user's attributes.
OF_MODULES = set(vars(nn.Module())) - {"training"}
_HOOKS = sorted(name for name in OF_MODULES if "_hooks" in name and "backward" not in name)


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


class TensorAttributes(Record):
    """The attributes that parameters and buffers have beside their values: a mask, a count, a name."""

    def __init__(self) -> None:
        self._empty: list[dict[str, Any]] = []
        self._filled: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def add(self, module: nn.Module) -> Iterator[dict[str, Any]]:
        """Of the tensors of this module, too; those that there are."""
        for table in (module._parameters, module._buffers):
            for tensor in table.values():
                if tensor is None:
                    continue
                names = vars(tensor)
                if names:
                    self._filled.append((names, dict(names)))
                    yield names
                else:
                    self._empty.append(names)

    def _same(self) -> bool:
        return not any(self._empty) and all(unchanged(names, before) for names, before in self._filled)

    def renewed(self) -> Record | None:
        """See `Record`."""
        if self._same():
            return self
        if any(self._empty) or not all(differ_in_numbers(before, names) for names, before in self._filled):
            return None
        now = TensorAttributes()
        now._empty, now._filled = self._empty, [(names, dict(names)) for names, _ in self._filled]
        return now

    def restore(self) -> bool:
        """See `Record`."""
        if self._same():
            return False
        for names in self._empty:
            names.clear()
        for names, before in self._filled:
            names.clear()
            names.update(before)
        return True

    def restore_numbers(self) -> None:
        """See `Record`."""
        for names, before in self._filled:
            names.update({key: value for key, value in before.items() if counts_once(value)})

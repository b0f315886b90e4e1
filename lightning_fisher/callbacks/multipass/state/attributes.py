"""The attributes of the modules a `training_step` runs through, and of the objects they hold."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from operator import is_
from typing import Any

from torch import nn

from lightning_fisher.callbacks.multipass.state.records.record import Record
from lightning_fisher.callbacks.multipass.state.sizes import fingerprint
from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError
from lightning_fisher.callbacks.multipass.state.walk import Walk


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
        modules: All modules found.
    """

    def __init__(
        self,
        module: nn.Module,
        others: Iterable[tuple[str, Any]] = (),
        shallow: Iterable[Any] = (),
        thorough: bool = False,
        deep: dict[int, Any] | None = None,
    ) -> None:
        self._thorough = thorough
        self._deep = {} if deep is None else deep
        self._learned = len(self._deep)
        self._arguments = module, list(others), list(shallow)
        self._walk = Walk(*self._arguments, thorough, self._deep)
        self._records = self._walk.records
        self.tensors, self.modules = self._walk.tensors, self._walk.modules

    def exchange(self) -> None:
        """Put the stand-ins in place; `restore` takes them out."""
        self._walk.exchange.begin()

    def restore(self, since: AttributeSnapshot | None = None) -> None:
        """Put everything back; what is new goes.

        Args:
            since: Another snapshot, which everything is as in; only what is different in this one is put back then.
        """
        self._walk.exchange.end()
        for record in self._differing(since):
            record.restore()

    def restore_numbers(self, since: AttributeSnapshot | None = None) -> None:
        """Put back numbers that are attributes, hyperparameters and learning rates: they count once a step."""
        for record in self._differing(since):
            record.restore_numbers()

    def alike(self, other: AttributeSnapshot) -> bool:
        """Whether both are of the same things, in one state or two."""
        return other._walk is self._walk

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
        for name, value, before in self._walk.opaque:
            if fingerprint(value) != before:
                raise LostStateError(f"changes {name!r} ({type(value).__name__})", "do that in `on_train_batch_end`")

"""Lists, deques, dictionaries and sets: which items they hold, and what is in large ones."""

from __future__ import annotations

import collections
from collections.abc import Callable
from operator import is_
from typing import Any

from lightning_fisher.callbacks.multipass.state.records.comparison import (
    DEEP,
    counts_once,
    differ_in_numbers,
    is_moving_average,
    unchanged,
)
from lightning_fisher.callbacks.multipass.state.records.record import Record
from lightning_fisher.callbacks.multipass.state.records.values import Values


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

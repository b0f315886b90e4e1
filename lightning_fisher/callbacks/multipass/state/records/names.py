"""Names and what they stand for: attributes, global variables, slots, the cells of closures."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_
from typing import Any

from lightning_fisher.callbacks.multipass.state.records.comparison import (
    counts_once,
    differ_in_numbers,
    is_moving_average,
)
from lightning_fisher.callbacks.multipass.state.records.record import MISSING, Record
from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError


class Namespace(Record):
    """A dictionary of attributes or of global variables; what is new goes.

    Args:
        names: The dictionary.
        only: The variables looked at; ``None``: all.
        apart: Names that are somebody else's.
    """

    def __init__(self, names: dict[str, Any], only: Iterable[str] | None = None, apart: Iterable[str] = ()) -> None:
        self.names, self._apart, self._length = names, apart, len(names)
        self._only = None if only is None else list(only)
        if self._only is not None:
            self._before = {name: names.get(name, MISSING) for name in self._only}
        elif apart:
            self._before = {name: value for name, value in names.items() if name not in apart}
        else:
            self._before = dict(names)

    def _same(self) -> bool:
        names, before = self.names, self._before
        same = all(map(is_, map(names.get, before), before.values()))
        return same and (self._only is not None or len(names) == self._length)

    def renewed(self) -> Record | None:
        """See `Record`."""
        if self._same():
            return self
        now = Namespace(self.names, self._only, self._apart)
        return now if differ_in_numbers(self._before, now._before) else None

    def restore(self) -> bool:
        """See `Record`."""
        names, before = self.names, self._before
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
            for name in self.names.keys() - self._before.keys() - set(self._apart):
                if counts_once(self.names[name]):
                    del self.names[name]
        for name, value in self._before.items():
            now = self.names.get(name, MISSING)
            if now is not value and (counts_once(value) or is_moving_average(value, now)):
                self.names[name] = value


class Namespaces(Record):
    """Many dictionaries of attributes that hardly ever change (of layers), looked at together."""

    def __init__(self, members: Iterable[Namespace] = ()) -> None:
        self._members: list[Namespace] = []
        self._names: list[dict[str, Any]] = []
        self._values: list[Any] = []
        for member in members:
            self.add(member)

    def add(self, member: Namespace) -> None:
        """One more."""
        self._members.append(member)
        self._names.append(member.names)
        self._values += member.names.values()

    def _same(self) -> bool:
        now = chain.from_iterable(map(dict.values, self._names))
        return sum(map(len, self._names)) == len(self._values) and all(map(is_, now, self._values))

    def renewed(self) -> Record | None:
        """See `Record`."""
        if self._same():
            return self
        renewed = [member.renewed() for member in self._members]
        complete = [member for member in renewed if isinstance(member, Namespace)]
        return Namespaces(complete) if len(complete) == len(renewed) else None

    def restore(self) -> bool:
        """See `Record`."""
        return not self._same() and sum(member.restore() for member in self._members) > 0

    def restore_numbers(self) -> None:
        """See `Record`."""
        if not self._same():
            for member in self._members:
                member.restore_numbers()


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


class ContextValue(Record):
    """The value of a context variable; of one that has none, its default."""

    def __init__(self, variable: contextvars.ContextVar[Any]) -> None:
        self._variable, self._before = variable, variable.get(MISSING)

    def renewed(self) -> Record | None:
        """See `Record`."""
        now = self._variable.get(MISSING)
        if now is self._before:
            return self
        return ContextValue(self._variable) if differ_in_numbers([self._before], [now]) else None

    def restore(self) -> bool:
        """See `Record`."""
        if self._variable.get(MISSING) is self._before:
            return False
        if self._before is not MISSING:
            self._variable.set(self._before)
            return True
        try:
            self._variable.set(contextvars.Context().run(self._variable.get))
        except LookupError:
            raise LostStateError(
                f"sets the context variable {self._variable.name!r} for the first time",
                "give it a `default`, or set it in `on_fit_start`",
            ) from None
        return True

    def restore_numbers(self) -> None:
        """See `Record`."""
        if counts_once(self._before) or is_moving_average(self._before, self._variable.get(MISSING)):
            self.restore()


def _get(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, MISSING)
    except ValueError:  # the cell of a variable that has been deleted
        return MISSING

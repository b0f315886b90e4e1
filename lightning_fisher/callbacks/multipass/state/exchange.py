"""Stand-ins that take the places of what an extra pass must not use, for the time of the pass."""

from __future__ import annotations

from typing import Any

from lightning_fisher.callbacks.multipass.state.caches import CachedFunction
from lightning_fisher.callbacks.multipass.state.places import Place, put


class Exchange:
    """What is exchanged, at every place where it is held."""

    def __init__(self) -> None:
        self._others: dict[int, Any] = {}
        self._held: list[tuple[Place, Any, Any]] = []
        self._out = False  # whether the stand-ins are in place

    def add(self, place: Place, value: Any, other: Any) -> None:
        """``other`` in the place of ``value``."""
        self._others[id(value)] = other
        self._held.append((place, value, other))

    def also(self, place: Place, value: Any) -> None:
        """Another place, if the value is one of those."""
        if id(value) in self._others:
            self._held.append((place, value, self._others[id(value)]))

    def begin(self) -> None:
        """Put the stand-ins in place."""
        self._out = True
        for place, _, other in self._held:
            if isinstance(other, CachedFunction):
                other.begin()
            put(place, other)

    def end(self) -> None:
        """Take them out, if they are in place."""
        if self._out:
            self._out = False
            for place, value, _ in self._held:
                put(place, value)

"""Where something is held, so that a stand-in can take its place for a while."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

Place = tuple[Callable[[Any, Any, Any], None], Any, Any]  # ``put(holder, key, value)``, holder, key


def put(place: Place, value: Any) -> None:
    """Let the place hold ``value``."""
    function, holder, key = place
    function(holder, key, value)


def entry(container: Any, key: Any) -> Place:
    """Of a dictionary, a list or a deque."""
    return operator.setitem, container, key


def attribute(owner: Any, name: str) -> Place:
    """That is assigned: a slot, an attribute of a class, the contents of a cell, the defaults of a function."""
    return (setattr if isinstance(owner, type) else object.__setattr__), owner, name


def items_of(held: tuple[Any, ...], place: Place) -> list[Place]:
    """Of a tuple, which is held at a place itself and made anew."""
    items = list(held)
    make = getattr(type(held), "_make", type(held))

    def put_item(_: Any, index: int, value: Any) -> None:
        items[index] = value
        put(place, make(items))

    return [(put_item, held, index) for index in range(len(items))]


def argument(partial: functools.partial[Any], which: int) -> Place:
    """The function (0) or the positional arguments (1) of a partial function."""

    def put_argument(_: Any, which: int, value: Any) -> None:
        state = [partial.func, partial.args, partial.keywords, partial.__dict__]
        state[which] = value
        partial.__setstate__(tuple(state))  # type: ignore[attr-defined]

    return put_argument, partial, which

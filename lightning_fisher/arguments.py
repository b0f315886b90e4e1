"""Refuse an argument of a metric that has the wrong type or is out of range."""

from __future__ import annotations

import math
from typing import Any


def require_integer(name: str, value: Any, least: int, or_none: bool = False) -> None:
    """Refuse what is no integer of at least ``least``.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.

    Example:
        >>> from lightning_fisher.arguments import require_integer
        >>> require_integer("chunk_size", 1, least=2, or_none=True)
        Traceback (most recent call last):
        ValueError: Expected argument `chunk_size` to be an integer of at least 2 or None, but got 1.
    """
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        words = f"an integer of at least {least}{' or None' if or_none else ''}"
        raise ValueError(f"Expected argument `{name}` to be {words}, but got {value!r}.")


def require_positive(name: str, value: Any, or_none: bool = False) -> None:
    """Refuse what is no positive number.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        words = f"a positive number{' or None' if or_none else ''}"
        raise ValueError(f"Expected argument `{name}` to be {words}, but got {value!r}.")


def require_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of a few words.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    if value not in allowed:
        raise ValueError(f"Expected argument `{name}` to be one of {allowed}, but got {value!r}.")

"""Refuse an argument that has the wrong type or is out of range."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def suggestion(value: Any, allowed: Iterable[str]) -> str:
    """What was meant, for the end of a message; empty where nothing allowed is near.

    Args:
        value: The value received.
        allowed: The words that are allowed.

    Example:
        >>> from lightning_fisher.arguments import suggestion
        >>> suggestion("recommendd", ["recommended", "paper"])
        ' Did you mean `recommended`?'
    """
    words = {word.lower(): word for word in allowed}
    near = difflib.get_close_matches(value.lower(), list(words), n=1, cutoff=0.6) if isinstance(value, str) else []
    return f" Did you mean `{words[near[0]]}`?" if near else ""


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; `True` and `False` are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number; `True` and `False` are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    """Whether a value is a finite number; `True` and `False` are not."""
    return is_number(value) and math.isfinite(value)


def require_integer(
    name: str, value: Any, least: int, or_none: bool = False, *, most: float = math.inf, words: str = ""
) -> None:
    """Refuse what is no integer from ``least`` to ``most``.

    Args:
        name: Of the argument.
        value: Its value.
        least: Smallest allowed value.
        or_none: Whether None is allowed too.
        most: Largest allowed value.
        words: What is allowed, for the message; empty: the limits.

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
    if not is_integer(value) or not least <= value <= most:
        words = words or f"an integer of at least {least}{' or None' if or_none else ''}"
        raise ValueError(f"Expected argument `{name}` to be {words}, but got {value!r}.")


def require_number(name: str, value: Any, least: float, most: float = math.inf, words: str = "") -> None:
    """Refuse what is no finite number from ``least`` to ``most``.

    Args:
        name: Of the argument.
        value: Its value.
        least: Smallest allowed value.
        most: Largest allowed value.
        words: What is allowed, for the message; empty: the limits.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    if not is_finite_number(value) or not least <= value <= most:
        words = words or f"a number from {least:g} to {most:g}"
        raise ValueError(f"Expected argument `{name}` to be {words}, but got {value!r}.")


def require_positive(name: str, value: Any, or_none: bool = False) -> None:
    """Refuse what is no positive number.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    if or_none and value is None:
        return
    if not is_finite_number(value) or value <= 0:
        words = f"a positive number{' or None' if or_none else ''}"
        raise ValueError(f"Expected argument `{name}` to be {words}, but got {value!r}.")


def require_non_negative(name: str, value: Any) -> None:
    """Refuse what is no number of at least zero.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"Expected argument `{name}` to be a non-negative number, but got {value!r}.")


def require_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse what is none of a few words.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    if value not in allowed:
        raise ValueError(
            f"Expected argument `{name}` to be one of {allowed}, but got {value!r}.{suggestion(value, allowed)}"
        )

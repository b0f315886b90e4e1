"""When two contents are the same, and which changes count once a step."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from operator import is_
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.callbacks.multipass.state.records.record import MISSING

PLAIN = {bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device, torch.Size}
LARGE = 100_000  # items of a container beyond which only its ends are compared
DEEP = 1_000  # items beyond which what is in them is looked at in the first steps only, unless it changes there


def unchanged(now: Any, before: Any) -> bool:
    """The same items, by identity; of very large containers the ends are."""
    if len(now) != len(before):
        return False
    if isinstance(before, dict):
        return all(map(is_, now, before)) and all(map(is_, now.values(), before.values()))
    if len(now) > LARGE:
        return now[0] is before[0] and now[-1] is before[-1]
    return all(map(is_, now, before))


def differ_in_numbers(before: Any, now: Any) -> bool:
    """Whether what is different holds nothing else: numbers, strings. In two dictionaries or two lists."""
    if isinstance(before, dict):
        pairs: Iterable[tuple[Any, Any]] = [(before.get(key), now.get(key)) for key in before.keys() | now.keys()]
    else:
        pairs = zip_longest(before, now)
    return all(a is b or all(type(v) in PLAIN or v is MISSING for v in (a, b)) for a, b in pairs)


def counts_once(value: Any) -> bool:
    """Whether a value is a number (or a moving average of numbers) that a step replaces."""
    return type(value) in PLAIN or isinstance(value, Tensor)


def is_moving_average(before: Any, now: Any) -> bool:
    """Whether a list, tuple or dictionary holds arrays each of which has been replaced by a new one of the same shape.

    A queue moves the tensors that it holds, and a memory of samples replaces some of them: these are none.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(value, now[key]) for key, value in before.items() if key in now]
    elif any(isinstance(before, kind) and isinstance(now, kind) for kind in (list, tuple)):
        pairs = list(zip(before, now, strict=False))
    else:
        return False
    if not len(pairs) == len(before) == len(now):
        return False
    arrays = [(old, new) for old, new in pairs if isinstance(old, Tensor) and old.is_floating_point() and old.ndim]
    held = {id(old) for old, _ in arrays}
    return bool(arrays) and all(
        isinstance(new, Tensor) and new.shape == old.shape and new.dtype == old.dtype and id(new) not in held
        for old, new in arrays
    )

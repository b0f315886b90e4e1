"""How much of something is looked at: every step, in the first steps only, by a fingerprint, or not at all."""

from __future__ import annotations

import collections
import pickle
import sys
import types
import zlib
from typing import Any

from torch import Tensor

from lightning_fisher.callbacks.multipass.state.records.comparison import DEEP, PLAIN

SMALL = 2**20  # bytes of an array of which a copy is taken every step
COMPARED = 2**26  # and beyond which it is only fingerprinted
LITTLE = 2**16  # bytes of an array of the data of which a copy is taken every step
SEARCHED = 10_000  # items of a container of the data beyond which it is not looked into


def is_filled(value: Any) -> bool:
    """Whether it is a container, an array or a tensor."""
    return isinstance(value, (list, collections.deque, dict, set, Tensor)) or is_array(value)


def is_small(value: Any) -> bool:
    """Of the data: whether it is looked at every step."""
    if isinstance(value, Tensor) or is_array(value):
        return int(value.nbytes) <= LITTLE
    values = value.values() if isinstance(value, dict) else value
    return len(value) <= DEEP and all(type(item) in PLAIN for item in values)


def bytes_in(value: Any, depth: int = 3) -> float:
    """Of the arrays and tensors in a container, with a few more for each item; many if it is too long."""
    if isinstance(value, Tensor) or is_array(value):
        return float(value.nbytes)
    if depth == 0 or not isinstance(value, (list, tuple, collections.deque, dict, set)):
        return 100.0
    if len(value) > SEARCHED:
        return float("inf")
    return sum(bytes_in(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))


def is_array(value: Any) -> bool:
    """Whether it is one of numpy's."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def fingerprint(value: Any) -> Any:
    """What differs once the content does, as far as that can be told."""
    if is_array(value):
        words = value.flags.c_contiguous and value.nbytes % 8 == 0
        return int(value.reshape(-1).view("u8").sum()) if words else zlib.crc32(value.tobytes())
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        return None if frame is None else (frame.f_lasti, repr(frame.f_locals)[:1000])
    if hasattr(value, "qsize"):  # of a queue in C
        return value.qsize()
    if hasattr(value, "total_changes"):  # of a database of sqlite
        return value.total_changes
    try:
        return pickle.dumps(value)
    except Exception:
        return repr(value)[:1000] if hasattr(type(value), "__next__") else None

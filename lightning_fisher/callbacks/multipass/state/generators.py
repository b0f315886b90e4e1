"""Random generators that a module holds itself."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def _set_state(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)


def restorer(value: Any) -> Callable[[], None] | None:
    """A function that puts the generator's state of now back; ``None`` for what is no generator."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return partial(_set_state, value, state)
    if isinstance(value, random.Random):
        python = value.getstate()
        return lambda: value.setstate(python)
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.random.Generator):
        bits = value.bit_generator
        found = bits.state
        return lambda: setattr(bits, "state", found)
    if isinstance(value, numpy.random.BitGenerator):
        found = value.state
        return lambda: setattr(value, "state", found)
    if isinstance(value, numpy.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    return None

"""States of the random generators, put back after a pass."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class RandomStateSnapshot:
    """State of Python's, numpy's (where it is in use) and torch's random generators, on the CPU and given devices."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
        self._torch = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(index) for index in self._cuda]
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")  # mixing augmentations draw from it; not a dependency
        self._numpy = None if numpy is None else numpy.random.get_state()

    def unchanged(self) -> bool:
        """Whether nothing was drawn since."""
        return self.same_as(RandomStateSnapshot(torch.device("cuda", index) for index in self._cuda))

    def same_as(self, other: RandomStateSnapshot) -> bool:
        """Whether nothing was drawn between two snapshots on the same devices."""
        tensors = zip([self._torch, *self._cuda_states], [other._torch, *other._cuda_states], strict=True)
        return (
            all(_content(a) == _content(b) for a, b in tensors)
            and self._python == other._python
            and _same_numpy(self._numpy, other._numpy)
        )

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self._torch)
        for index, state in zip(self._cuda, self._cuda_states, strict=True):
            torch.cuda.set_rng_state(state, index)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _content(state: Tensor) -> bytes:
    """Of a generator's state, which is on the CPU whatever the generator's device: compared without any operation."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)


def _same_numpy(one: Any, other: Any) -> bool:
    """``(name, keys, position, …)`` of numpy's generator, or None."""
    if one is None or other is None:
        return one is other
    name, keys, *rest = one
    return bool((name, *rest) == (other[0], *other[2:]) and (keys == other[1]).all())


@contextmanager
def preserved_random_state(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore the random state on the way out."""
    snapshot = RandomStateSnapshot(devices)
    try:
        yield
    finally:
        snapshot.restore()

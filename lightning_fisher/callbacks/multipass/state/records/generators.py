"""Random generators that a module holds itself."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from lightning_fisher.callbacks.multipass.state.records.record import Record


def is_generator(value: Any) -> bool:
    """Whether it is a random generator of torch, numpy (in all its forms) or Python, with a state."""
    if isinstance(value, (torch.Generator, random.Random)):
        return not isinstance(value, random.SystemRandom)  # which asks the operating system
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    kinds = (numpy.random.Generator, numpy.random.BitGenerator, numpy.random.RandomState)
    return isinstance(value, kinds)


class GeneratorState(Record):
    """The state of a random generator."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._owner = getattr(generator, "bit_generator", generator)  # of numpy's, what holds the state
        self._state = self._taken()
        self._seed = getattr(self._owner, "seed_seq", None)  # of numpy's, which counts the generators spawned of it
        self._spawned = getattr(self._seed, "n_children_spawned", None)

    def _taken(self) -> Any:
        owner = self._owner
        if isinstance(owner, random.Random):
            return owner.getstate()
        return owner.get_state() if hasattr(owner, "get_state") else owner.state

    def renewed(self) -> Record:
        """See `Record`."""
        return GeneratorState(self._generator)

    def restore(self) -> bool:
        """See `Record`."""
        owner = self._owner
        if isinstance(owner, random.Random):
            owner.setstate(self._state)
        elif hasattr(owner, "set_state"):
            owner.set_state(self._state)
        else:
            owner.state = self._state
        seed: Any = self._seed
        if getattr(seed, "n_children_spawned", None) != self._spawned:
            settings = {"spawn_key": seed.spawn_key, "pool_size": seed.pool_size, "n_children_spawned": self._spawned}
            owner.__setstate__((owner.state, type(seed)(seed.entropy, **settings)))
        return False

"""Save and restore the random state, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

STATE_KEY = "lightning_fisher.random_state"


def get_random_state() -> dict[str, Any]:
    """Return the state of every global random generator of this process, in plain types.

    Returns:
        ``python``, ``numpy`` and ``torch`` (the CPU generator), and ``cuda`` (the current device's generator)
        where CUDA is initialized. Lists, numbers, strings and tensors only, so that
        ``torch.load(..., weights_only=True)`` reads it. About 15 kB.
    """
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [
            numpy_state["bit_generator"],
            numpy_state["state"]["key"].tolist(),
            int(numpy_state["state"]["pos"]),
            int(numpy_state["has_gauss"]),
            float(numpy_state["gauss"]),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the global random generators to a state taken by :func:`get_random_state`.

    Args:
        state: what :func:`get_random_state` returned. A CUDA state is ignored on a machine without CUDA.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class RandomState(Callback):
    """Keep the random state of every rank in the checkpoint.

    Lightning saves weights, optimizers and loops but not the random state: a network with dropout, random
    augmentation or shuffled data differs after a resume. With this callback it goes on as if it had never
    stopped, provided the checkpoint was written at the end of an epoch and resumed with as many processes
    as it was written with (with another number, ranks keep the state they were seeded with).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RandomState()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._restored: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gather the state of all ranks (the hook runs on every rank; rank 0 writes the file)."""
        state = get_random_state()
        states: list[Any] = [state]
        if trainer.world_size > 1 and torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, state)
        checkpoint[STATE_KEY] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's state until the fit starts."""
        states = checkpoint.get(STATE_KEY)
        if states is not None and len(states) == trainer.world_size:
            self._restored = states[trainer.global_rank]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the state: the last hook before the data loader draws the order of the first epoch."""
        if self._restored is not None:
            set_random_state(self._restored)
            self._restored = None

"""Ranks of which one fails: what the others do."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_fisher import FisherMonitor, FisherRegularizer
from tests.callbacks.tiny import Classifier, loader, mlp, multi_step, seeded
from tests.distributed.fits import BATCHES, MONITOR, MONITORED, M, share, trainer_of

CALLS = "CALLS_OF_TRAINING_STEP"


class Fails(Classifier):
    """Raises, or dies, in the step of a batch, in its second call of `training_step` where there are extra passes.

    Counts in the environment: what an extra pass changes on the module or its class is undone.
    """

    how, at, call = "", 0, 1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        os.environ[CALLS] = "0"

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        os.environ[CALLS] = str(int(os.environ[CALLS]) + 1)
        if self.how and self.trainer.fit_loop.total_batch_idx + 1 == self.at and int(os.environ[CALLS]) == self.call:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this rank fails")
        return super().training_step(batch, batch_idx)


def fail(rank: int, world: int, folder: Path, who: int, how: str, at: int) -> None:
    """Train until rank ``who`` fails at the n-th batch, from 1; from the fifth on they are regularized."""
    torch.set_num_threads(1)
    module = Fails(seeded(mlp), scheduler=multi_step(1))
    if rank == who:
        module.how, module.at, module.call = how, at, 2 if at > len(BATCHES) else 1
    callbacks = [FisherRegularizer(5.0, num_sub_batches=M), FisherMonitor(MONITORED, **MONITOR)]
    trainer = trainer_of(world, folder, *callbacks)
    try:
        trainer.fit(module, loader([share(batch, rank, world) for batch in BATCHES]))
    finally:
        print(f"training_step is its own again: {'training_step' not in vars(module)}", flush=True)

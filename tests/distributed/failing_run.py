"""``python -m tests.distributed.failing_run ARGUMENTS``: run.py, of which one process fails at a step.

``FAIL=RANK:HOW:N``: at its n-th call of `training_step` the process of that rank raises, or kills itself.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from lightning_fisher.experiment import main
from lightning_fisher.module import ImageClassifier


def arm() -> None:
    rank, how, number = os.environ.get("FAIL", "-:-:0").split(":")
    if os.environ.get("LOCAL_RANK", "0") != rank:
        return
    step, calls = ImageClassifier.training_step, 0

    def training_step(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(number):
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this rank fails")
        return step(self, batch, batch_idx)

    ImageClassifier.training_step = training_step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    arm()
    main()

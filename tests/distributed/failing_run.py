"""``python -m tests.distributed.failing_run ARGUMENTS``: run.py, of which one process fails in a step.

``FAIL=RANK:HOW:N``: in the step of the n-th batch the process of that rank raises, or kills itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lightning_fisher.experiment import main
from tests.resume.killing import Call, Send

STEP = "lightning_fisher.module:ImageClassifier.training_step"


def fail(folder: Path) -> None:
    raise RuntimeError("this rank fails")


def arm() -> None:
    rank, how, batch = os.environ.get("FAIL", "-:-:0").split(":")
    if os.environ.get("LOCAL_RANK", "0") == rank:
        action = Send() if how == "killed" else fail
        Call(STEP, 2, batch=int(batch), action=action).arm(Path.cwd() / "anything")


if __name__ == "__main__":
    torch.set_num_threads(1)
    arm()
    main()

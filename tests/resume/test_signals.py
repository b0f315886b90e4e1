"""Ctrl-C, SIGTERM and SLURM's warning end a run in one line, and it continues to the same numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.resume.killing import Call, Send
from tests.resume.runs import assert_same, begin, complete
from tests.resume.test_kill import LAST, STEP, SUBSET

CONTINUES = "Interrupted. The same command continues from the last checkpoint."
AGAIN = "Interrupted before the first checkpoint. The same command starts again."
SLURM = {  # what `srun` of one task sets; Lightning recognizes it
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "localhost",
}

POINTS = {
    "Ctrl-C in a regularized step": Call(STEP, 3, batch=10, action=Send(signal.SIGINT)),
    "SIGTERM while a checkpoint is written": Call("torch:save", 3, "half", only=LAST, action=Send(signal.SIGTERM)),
}
MORE_POINTS = {
    "SIGTERM in a regularized step": Call(STEP, 3, batch=10, action=Send(signal.SIGTERM)),
    "SIGTERM inside the monitor": Call(SUBSET, 2, batch=12, action=Send(signal.SIGTERM)),
    "SIGTERM in validation": Call(
        "lightning_fisher.module:ImageClassifier.validation_step", 3, action=Send(signal.SIGTERM)
    ),
    "Ctrl-C in the final test": Call(
        "lightning_fisher.module:ImageClassifier.test_step", 2, action=Send(signal.SIGINT)
    ),
    "SIGTERM in the final measurement": Call(SUBSET, 4, batch=16, action=Send(signal.SIGTERM)),
    "SIGTERM before the row": Call(
        "lightning_fisher.experiment.training.train:write_row", 1, action=Send(signal.SIGTERM)
    ),
}


def interrupt(folder: Path, point: Call, line: str, **env: str) -> None:
    """The exit code is the shells', the line is there once and stands alone: no traceback, no error."""
    assert isinstance(point.action, Send)
    child = begin(folder, point, **env)
    assert child.wait() == 128 + point.action.signum, child.output
    assert child.output.count(line) == 1, child.output
    assert "Traceback" not in child.output
    assert "Error" not in child.output
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("name", [*POINTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_POINTS)])
def test_interrupted_and_continued(name: str, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt(run, {**POINTS, **MORE_POINTS}[name], CONTINUES)
    complete(run)
    assert_same(run, whole)


@pytest.mark.parametrize("point", ["lightning_fisher.experiment.training.train:load_training_data", STEP])
def test_interrupted_before_the_first_checkpoint(point: str, tmp_path: Path) -> None:
    """It does not promise a checkpoint; where nothing was written, no folder is left."""
    run = tmp_path / "run"
    interrupt(run, Call(point, 1, action=Send(signal.SIGTERM)), AGAIN)
    assert run.exists() == (point == STEP)


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1])
def test_slurm_preemption(signum: int, whole: Path, tmp_path: Path) -> None:
    """Lightning would answer SIGUSR1 with a checkpoint in the middle of the epoch, which does not continue exactly."""
    run = tmp_path / "run"
    interrupt(run, Call(STEP, 3, batch=10, action=Send(signum)), CONTINUES, **SLURM)
    assert not list(run.rglob("hpc_ckpt*"))
    complete(run)
    assert_same(run, whole)


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    """`nohup` and background jobs of scripts start with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from lightning_fisher.command_line import signals

        with signals.listening():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)

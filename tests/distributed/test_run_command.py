"""`python run.py trainer=ddp`: a process that fails, signals, and going on afterwards to the same numbers.

Lightning starts the second process by repeating the command; `torchrun` and SLURM start all of them.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Child, free_port, start
from tests.resume.killing import Call
from tests.resume.runs import OPTIONS, assert_same
from tests.resume.test_kill import STEP

WORLD = 2
DDP = [*OPTIONS, "trainer=ddp", f"trainer.devices={WORLD}", "trainer.accelerator=cpu"]
MODULE = "tests.distributed.failing_run"
REGULARIZED = 5  # the first batch with extra passes: two plain epochs of two batches come before
CONTINUES = "The same command continues from the last checkpoint."


def launched(folder: Path, name: str = "run", fail: str = "-:-:0") -> Child:
    """As a user types it; Lightning starts rank 1."""
    command = [sys.executable, "-m", MODULE, *DDP, f"hydra.run.dir={folder / name}"]
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    return start("tests.processes:execute", command, log=log, env={"FAIL": fail})


def torchrun(folder: Path, name: str = "run", points: dict[int, Any] | None = None) -> list[Child]:
    """As `torchrun` starts it: every process with its place in the environment."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(WORLD)}
    common |= {"LOCAL_WORLD_SIZE": str(WORLD), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    run = folder / name
    ranks = []
    for rank in range(WORLD):
        env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = ([*DDP, f"hydra.run.dir={run}"], run, (points or {}).get(rank), False)
        log = folder / f"{name}-{time.monotonic_ns()}.log"
        ranks.append(start("tests.resume.runs:command", *arguments, log=log, folder=folder, env=env))
    return ranks


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    ranks = torchrun(folder)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    return folder / "run"


def errors(output: str) -> list[str]:
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("Error: ")]


def continues(folder: Path, whole: Path) -> None:
    ranks = torchrun(folder)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    assert "continuing from" in ranks[0].output
    assert_same(folder / "run", whole)


@pytest.mark.parametrize("who", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_killed_and_continued(who: int, whole: Path, tmp_path: Path) -> None:
    """Whichever process it was, the other ends with one line, and both continue."""
    ranks = torchrun(tmp_path, points={who: Call(STEP, 2, batch=REGULARIZED)})
    codes = [rank.wait() for rank in ranks]
    assert codes[who] == -signal.SIGKILL
    assert codes[1 - who] == 1, ranks[1 - who].output
    (line,) = errors(ranks[1 - who].output)
    assert "Another process of this run has ended" in line
    continues(tmp_path, whole)


@pytest.mark.slow
def test_a_rank_that_raises(whole: Path, tmp_path: Path) -> None:
    """Its own error is told with its traceback's place; the first process ends with exit code 1, not by a kill."""
    child = launched(tmp_path, fail=f"1:raises:{REGULARIZED}")
    assert child.wait() == 1, child.output
    first, second = errors(child.output)
    assert first.startswith("Error: process 1: RuntimeError: this rank fails (traceback: ")
    assert "error-1.log" in first
    assert "this rank fails" in (tmp_path / "run" / "error-1.log").read_text()
    assert second == f"Error: Process 1 of this run ended with exit code 1, so all of it ended; t{CONTINUES[1:]}"
    assert child.alone()
    continues(tmp_path, whole)


@pytest.mark.slow
def test_a_rank_that_is_killed(whole: Path, tmp_path: Path) -> None:
    child = launched(tmp_path, fail=f"1:killed:{REGULARIZED}")
    assert child.wait() == 1, child.output
    (line,) = errors(child.output)
    assert line.startswith("Error: Process 1 of this run was killed by signal 9")
    assert child.alone()
    continues(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_the_first_process_fails(how: str, whole: Path, tmp_path: Path) -> None:
    """The one that it started ends with it."""
    child = launched(tmp_path, fail=f"0:{how}:{REGULARIZED}")
    assert child.wait() == (1 if how == "raises" else -signal.SIGKILL), child.output
    assert child.alone(), child.output
    lines = errors(child.output)
    if how == "raises":
        assert lines[0].startswith("Error: RuntimeError: this rank fails")
    assert len(lines) == (how == "raises") or (how == "killed" and len(lines) == 1)
    continues(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "group"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)])
def test_signals(signum: int, group: bool, whole: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes, a scheduler's SIGTERM all or the first."""
    child = launched(tmp_path)
    child.wait_for("regularized phase begins")
    child.send(signum, group=group)
    assert child.wait(60) == 128 + signum, child.output
    assert child.alone()
    assert errors(child.output) == []
    assert child.output.count("Interrupted.") == 1
    assert CONTINUES in child.output
    continues(tmp_path, whole)


class FindsNothing:
    """A machine that does not see the run folder of the first one."""

    def arm(self, folder: Path) -> None:
        from lightning_fisher.experiment.training import train

        train.resumable = lambda folder: None


def test_folders_that_are_not_shared(tmp_path: Path) -> None:
    """Otherwise one process would begin anew beside another that continues."""
    ranks = torchrun(tmp_path, points={0: Call(STEP, 2, batch=REGULARIZED)})
    assert [rank.wait() for rank in ranks] == [-signal.SIGKILL, 1]
    ranks = torchrun(tmp_path, points={1: FindsNothing()})
    assert [rank.wait(60) for rank in ranks] == [1, 1], ranks[0].output
    (line,) = errors(ranks[1].output)
    assert line.startswith("Error: process 1: Process 1 finds no checkpoint to continue from, the first process ")
    assert line.endswith("share.")

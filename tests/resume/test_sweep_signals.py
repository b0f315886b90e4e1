"""Ctrl-C and SIGTERM in a sweep: its jobs end too, and the same command goes on."""

from __future__ import annotations

import functools
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import Child, start
from tests.resume.runs import OPTIONS, assert_same

GOES_ON = "Interrupted. The same command goes on with the jobs that are not complete."
CTRL_C, TERMINATE = (signal.SIGINT, True), (signal.SIGTERM, False)  # a terminal's reaches the jobs too
OTHERS = [(signal.SIGINT, False), (signal.SIGTERM, True)]
POLITE = """
import sys, time
print("job up", flush=True)
time.sleep(60)
"""
STUBBORN = "import signal\nfor s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n" + POLITE


def script(job: str, overrides: list[str], folder: Path) -> list[str]:
    return [sys.executable, "-c", job]


def command(arguments: list[str], job: str | None) -> None:
    """The child: `python run.py ARGUMENTS`, whose jobs are a script where one is given."""
    from lightning_fisher.experiment import main
    from lightning_fisher.experiment.sweep import jobs

    if job is not None:
        jobs.job_command = functools.partial(script, job)
        jobs.GRACE_SECONDS = 1.0
    sys.argv = ["run.py", *arguments]
    main()


def begin(folder: Path, job: str | None = None, *options: str) -> Child:
    arguments = ["-m", "seed=0,1", *OPTIONS, *options, f"hydra.sweep.dir={folder}"]
    log = folder.parent / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    return start("tests.resume.test_sweep_signals:command", arguments, job, log=log, folder=folder.parent)


def interrupted(child: Child, signum: int, group: bool) -> None:
    child.send(signum, group=group)
    assert child.wait(60) == 128 + signum, child.output
    assert child.alone(), "a job is still there"
    assert child.output.count(GOES_ON) == 1, child.output
    assert "Error" not in child.output


@pytest.mark.parametrize(
    ("signum", "group", "job"),
    [
        pytest.param(*CTRL_C, POLITE, id="Ctrl-C"),
        pytest.param(*TERMINATE, POLITE, id="SIGTERM"),
        *(pytest.param(*case, POLITE, marks=pytest.mark.slow) for case in OTHERS),
        *(pytest.param(*case, STUBBORN, marks=pytest.mark.slow) for case in (CTRL_C, TERMINATE, *OTHERS)),
    ],
)
def test_the_jobs_end(signum: int, group: bool, job: str, tmp_path: Path) -> None:
    child = begin(tmp_path / "sweep", job)
    child.wait_for("job up")
    interrupted(child, signum, group)
    assert child.output.count("job up") == 1, "the next job was started"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_of_joblib_end(signum: int, tmp_path: Path) -> None:
    """Its workers would go on, and start the jobs that remain."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    child = begin(tmp_path / "sweep", None, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    child.wait_for("epoch   1/4")
    child.send(signum)
    assert child.wait(60) == (128 + signum if signum == signal.SIGTERM else -signum), child.output
    assert child.alone(), "a job or a worker is still there"


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "group"), [CTRL_C, TERMINATE], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_and_continued(signum: int, group: bool, whole: Path, tmp_path: Path) -> None:
    """With real jobs: the one that was running continues, and ends at the numbers of a run that nothing happened to."""
    sweep = tmp_path / "sweep"
    child = begin(sweep)
    child.wait_for("regularized phase begins")
    interrupted(child, signum, group)
    child = begin(sweep)
    assert child.wait() == 0, child.output
    assert "continuing from" in child.output
    assert "2 of 2 jobs complete (0 before this command), 0 failed." in child.output
    (first,) = sweep.glob("seed=0_*")
    assert_same(first, whole)

"""Output never ends a training, and a signal ends the command at once, from its first moment on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_fisher.experiment.config.compose import ROOT
from tests.experiment.conftest import QUICK

COMMAND = [sys.executable, str(ROOT / "run.py")]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("way", ["ascii", "latin-1", "head", "closed", "full"])
def test_it_trains_whatever_happens_to_its_output(way: str, tmp_path: Path) -> None:
    """The switch, at which a β is printed, and the table at the end, with its γ̂."""
    line = " ".join([*COMMAND, *QUICK])
    line += {"head": " | head -1", "closed": " >&-", "full": " >/dev/full"}.get(way, "")
    encoding = {"PYTHONIOENCODING": way} if way in ("ascii", "latin-1") else {}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=tmp_path, env=environment(**encoding), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(list(tmp_path.glob("outputs/*/*/result.json"))) == 1
    if encoding:
        assert b"regularized phase begins after 2 epochs" in done.stdout


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.3, 1.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_signals_in_the_first_seconds(signum: int, seconds: float, tmp_path: Path) -> None:
    """While modules are imported, which swallow exceptions or make others of them."""
    process = subprocess.Popen(
        [*COMMAND, "model.max_epochs=100000", "metric.every_n_validations=null"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signum)
    try:
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 128 + signum, output
    assert output.count("Interrupted") == 1, output
    assert "Traceback" not in output

"""The command as a process: signals end it in one line, output that can't be written doesn't."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "lightning_fisher.label_errors", "digits", "--accelerator", "cpu"]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["importing", "training"])
def test_a_signal_ends_it_in_one_line(signum: signal.Signals, when: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--epochs", "500"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    if when == "training":
        for line in process.stdout:
            if line.startswith("epoch "):
                break
    else:
        time.sleep(1.5)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("Interrupted")] == errors.strip().splitlines()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's")
def test_a_full_disk_behind_the_output(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "--epochs", "1", "--images", "none"]
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "label_errors.csv").read_text().splitlines()) == 1798

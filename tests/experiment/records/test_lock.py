"""A run folder belongs to one process at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.run_folders import LOCK, lock

HOLD = (
    "import sys; from pathlib import Path; from lightning_fisher.experiment.records.run_folders import lock\n"
    "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
)


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds the folder, until a line is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_refused(other: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"Another process is training in .*: wait for it, or end it"),
        lock(tmp_path, 0.3),
    ):
        pytest.fail("held by two")


def test_it_waits_for_a_process_that_ends(other: subprocess.Popen[str], tmp_path: Path) -> None:
    assert other.stdin is not None
    end = threading.Timer(0.5, lambda: (other.stdin.write("\n"), other.stdin.flush()))
    end.start()
    with lock(tmp_path, 30.0):
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_leaves_the_folder_free(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.kill()
    other.wait()
    with lock(tmp_path, 5.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path, 0.1):
        pass

"""How the jobs of one sweep ended: a record of its own, also where two sweeps share a folder at the same time."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from lightning_fisher.experiment.records.result import write_atomically

JOBS = ".jobs"  # in the folder of sweeps: a folder for each that goes on
RECORD = "LIGHTNING_FISHER_RECORD"  # that of the sweep which a job belongs to


def begin(folder: Path) -> Path:
    """Make the record of a new sweep in this process; records of sweeps that were killed are removed.

    Args:
        folder: the folder of the sweep.
    """
    for old in sorted((folder / JOBS).glob("*")):
        host, _, rest = old.name.rpartition("+")
        if not host or (host == platform.node() and not _alive(rest.partition("-")[0])):
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    return folder / JOBS / f"{platform.node()}+{os.getpid()}-{time.time_ns()}"


def end(record: Path) -> None:
    """Remove the record of a sweep that has been summed up, or was interrupted."""
    shutil.rmtree(record, ignore_errors=True)
    if record.parent.is_dir() and not any(record.parent.iterdir()):
        shutil.rmtree(record.parent, ignore_errors=True)


def note(folder: Path, state: str, code: int, seconds: float) -> Path:
    """Note how a job of the sweep that this process works for ended.

    Args:
        folder: of the job.
        state: ``"complete"``, ``"complete already"`` or ``"failed"``.
        code: its exit code.
        seconds: that it took.

    Returns:
        The record of the sweep.
    """
    record = Path(os.environ[RECORD])
    record.mkdir(parents=True, exist_ok=True)
    found = {"folder": folder.name, "state": state, "exit_code": code, "seconds": round(seconds, 2)}
    write_atomically(record / f"{folder.name}.json", json.dumps(found))
    return record


def read(record: Path) -> list[dict[str, Any]]:
    """How the jobs of a sweep ended, in order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(record.glob("*.json"))]


def _alive(pid: str) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        return True
    return True

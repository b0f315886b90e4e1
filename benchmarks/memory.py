"""Peak extra memory of one call, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_fisher.experiment.records.provenance import peak_memory_mib

Say = Callable[[str], None]
TIMEOUT = 1800.0
MIB = 2**20


def extra_mib(call: Callable[[], object], device: torch.device) -> float:
    """Peak memory of a call beyond what was in use before it, in MiB.

    CUDA: allocated on the device. Linux: the largest resident size of this process, whose record is reset before the
    call; elsewhere its growth beyond the earlier record.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / MIB
        call()
        torch.cuda.synchronize(device)
        return peak_memory_mib(device) - before
    _return_free_memory()
    before = _reset_peak()
    call()
    return _peak() - before


def _return_free_memory() -> None:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


def _reset_peak() -> float:
    """Set the record of the resident size to the present size, and return it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> float:
    peak = _status("VmHWM")
    return peak if peak else peak_memory_mib(torch.device("cpu"))


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), 0.0)


def in_own_process(job: dict[str, Any], say: Say) -> float | None:
    """Measure a job of `benchmarks.memory_jobs` in a fresh process; ``None``, with the reason said, if it fails."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory_jobs", json.dumps(job)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, cwd=Path(__file__).parents[1]
        )
    except subprocess.TimeoutExpired:
        say(f"left out: {job['contender']}: took more than {TIMEOUT:g} s")
        return None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        say(f"left out: {job['contender']}: {reason}")
        return None
    return float(json.loads(done.stdout.strip().splitlines()[-1])["extra_mib"])

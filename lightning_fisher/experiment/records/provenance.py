"""Where a result comes from: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lightning_fisher

PACKAGES = ("lightning", "torchmetrics", "torchvision", "hydra-core", "numpy", "scikit-learn")


def versions() -> dict[str, str | None]:
    """The versions of Python and the packages a result depends on; None for one that is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "lightning_fisher": lightning_fisher.__version__,
        "torch": torch.__version__,
    }
    for package in PACKAGES:
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package.replace("-", "_")] = None
    found["cuda"] = torch.version.cuda
    return found


def git_commit() -> dict[str, Any]:
    """The commit of this checkout and whether the working tree differs from it; None outside a repository."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():  # installed: a repository around it is somebody else's
        return {"commit": None, "modified": None}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if status is None else bool(status)}


def cpu_name() -> str:
    """The processor's name where the system gives it, with family, model and stepping: names of clouds are generic."""
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    if "model name" not in found:
        return platform.processor() or platform.machine()
    numbers = "-".join(found[key] for key in ("cpu family", "model", "stepping") if key in found)
    return f"{found['model name']} ({numbers})" if numbers else found["model name"]


def hardware(device: torch.device, devices: int = 1) -> dict[str, Any]:
    """The machine a result was measured on.

    Args:
        device: where the network is.
        devices: how many devices trained it.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type),
        "devices": devices,
        "cpu": cpu_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),  # of torch's kernels: rounding depends on it
        "cpu_cores": usable,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: allocated on the device (CUDA), or resident in this process (elsewhere)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

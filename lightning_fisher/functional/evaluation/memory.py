"""How much memory is left for a pass."""

from __future__ import annotations

import math
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CONTAINERS = (  # limit, use, and what of the use is cache of files, in version 2 and 1 of control groups
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def available_memory(device: torch.device) -> float:
    """Bytes that can still be allocated on a device; infinity where nothing tells.

    A GPU: what is free there, and what torch holds without using it. The host, on Linux: what the kernel calls
    available, within the limit of a container.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return math.inf
    return max(0.0, min(_host(), *(_container(Path(folder), *names) for folder, *names in CONTAINERS)))


def _host() -> float:
    try:
        return 1024 * _fields(MEMINFO)["MemAvailable:"]
    except (OSError, KeyError, ValueError):  # not Linux, or not as it writes it
        return math.inf


def _container(folder: Path, limit: str, use: str, prefix: str) -> float:
    try:
        allowed, used = float((folder / limit).read_text()), float((folder / use).read_text())
        statistics = _fields(folder / "memory.stat")
    except (OSError, ValueError):  # none, or no limit: "max"
        return math.inf
    return allowed - used + sum(statistics.get(f"{prefix}{kind}_file", 0.0) for kind in ("active", "inactive"))


def _fields(path: Path) -> dict[str, float]:
    """Lines of a name and a number."""
    return {name: float(number) for name, number, *_ in (line.split() for line in path.read_text().splitlines())}

"""Results as files: ``NAME.json``, one entry a section, each with where and how it was measured."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders_gram import CONTENDERS
from benchmarks.settings import Settings
from lightning_fisher.experiment.records.provenance import git_commit, hardware, versions


def provenance(device: torch.device, command: str) -> dict[str, Any]:
    """Command, time, commit, hardware, versions and the load of the machine, as a section starts."""
    peers = {c.distribution: c.version() for c in CONTENDERS.values() if c.distribution and not c.missing()}
    try:
        peers["pytorch_optimizer"] = metadata.version("pytorch_optimizer")
    except metadata.PackageNotFoundError:
        peers["pytorch_optimizer"] = None
    machine = hardware(device)
    machine.pop("threads")  # each row has its own
    return {
        "command": command,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **git_commit(),
        "hardware": machine,
        "versions": {k: v for k, v in (versions() | peers).items() if v is not None},
        "load_average_before": load_average(),
    }


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, where the system tells it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def read(path: Path) -> dict[str, Any]:
    """The sections measured so far, or none.

    Raises:
        ValueError: if the file is not a result of this benchmark.
    """
    if not path.exists():
        return {}
    try:
        sections = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"Expected {path} to be a result of this benchmark, but it is no JSON: {error}") from error
    if not isinstance(sections, dict):
        raise ValueError(f"Expected {path} to be a result of this benchmark, but got a {type(sections).__name__}.")
    return sections


def write(path: Path, sections: dict[str, Any]) -> None:
    """Write the sections at once, never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as plain values; networks by their titles."""
    values = asdict(settings)
    values["networks"] = {name: network.title for name, network in settings.networks.items()}
    values["sequences"] = [sequence.title for sequence in settings.sequences]
    names = settings.memory_contenders
    values["memory_contenders"] = None if names is None else sorted(names)
    return values

"""What one call of the command line knows of itself: one object, whatever Hydra calls in between."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKED = "LIGHTNING_FISHER_CHECKED"  # set for the job of a sweep: the hash of its config, which was checked
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning reads them


@dataclass
class Command:
    """One call of the command line.

    Attributes:
        debug: whether an error is shown with its traceback.
        folder: the folder that Hydra made for the job, or for the sweep; None before.
        started: whether the job or the sweep was reached: a failure before is one of composing, or of that folder.
        sweep: the folder of the sweep that this process runs; None in a process that runs a job.
        sweep_config: Hydra's file in that folder as it was before, see `run_folders.sweep_config`.
        record: where the sweep notes how its jobs end; None without one.
        jobs: of the sweep; 0 before the first one starts.
        errors: what the job raised; Hydra would print a line of its own about it first.
        defaults: composed configs by their group choices, see `config.compose.defaults`.
        default_values: of these configs, flat, see `config.validation.check_config`.
        choices: of every group, by the folders of configs and the group.
        checked: the hashes of the configs that were checked before the first job of the sweep.
        fingerprints: of data sets, by name and place: made once.
    """

    debug: bool = False
    folder: Path | None = None
    started: bool = False
    sweep: Path | None = None
    sweep_config: bytes | None = None
    record: Path | None = None
    jobs: int = 0
    errors: list[Exception] = field(default_factory=list)
    defaults: dict[Any, Any] = field(default_factory=dict)
    default_values: dict[int, Any] = field(default_factory=dict)
    choices: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)
    fingerprints: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def enter(self, folder: Path) -> None:
        """Note the folder that Hydra made, and that the job or the sweep was reached."""
        self.folder, self.started = folder, True

    def leave_sweep(self) -> Path | None:
        """The folder of the sweep, which ends with this; None where there was none."""
        folder, self.sweep = self.sweep, None
        return folder


_current = Command()


def begin(debug: bool = False) -> Command:
    """Start a command: nothing is known of an earlier one in this process."""
    global _current
    _current = Command(debug=debug)
    return _current


def current() -> Command:
    """The command of this process; an empty one in a launcher's worker, which no command began."""
    return _current


def rank() -> int:
    """Which process of a run this is, known before its trainer is made; the first one speaks for all."""
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdigit()), 0)

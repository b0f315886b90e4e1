"""Every job of a sweep is checked before the first one trains."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from lightning_fisher.command_line import signals
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment import context
from lightning_fisher.experiment.config.compose import config_groups, known_options, refuse_shadowed
from lightning_fisher.experiment.config.error_messages import explain
from lightning_fisher.experiment.config.files import check_files
from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.config.score_request import is_scoring
from lightning_fisher.experiment.config.validation import check_config
from lightning_fisher.experiment.records.comparison import takes_from_others
from lightning_fisher.experiment.records.result import complete_row
from lightning_fisher.experiment.sweep.interruption import last_words

# Options of which `check_config` and `check_files` know all that can be wrong, and groups whose configs are all tried
# with each other: what a mistake in the others' values would be is found by the first job, before it trains.
OF_DATA = ("path", "train_size", "confusion_size", "label_noise", "validation_size", "seed")
SETTLED = ("seed", "reg.beta", "model.max_epochs", "comparison.job", *(f"data.{name}" for name in OF_DATA))
TRIED = ("reg", "optimizer", "scenario", "variation", "comparison")


class RefusedJobError(ConfigError):
    """A job of a sweep is refused before any was started."""


class FirstCheck:
    """Check the jobs of a sweep, one after the other as they are composed.

    Names, types, ranges, files and sizes are checked of each job whose row isn't complete; what a run is made of (data,
    network, optimizer, method, metrics, callbacks) is made once for each distinct value, so that jobs which differ in
    their seeds cost nothing. What depends on the device is left to the job.

    Args:
        jobs: of the sweep; None where the sweeper decides on them as it goes on.
        fixed: the options and groups that all jobs share, for the messages.
    """

    def __init__(self, jobs: int | None, fixed: Sequence[str]) -> None:
        self.fixed = fixed
        self._left = jobs
        self._new: list[tuple[DictConfig, list[str]]] = []
        self._known: set[str] = set()

    def check(self, made: DictConfig, overrides: list[str]) -> None:
        """Check a job; after the last one the parts of all, which takes imports of seconds.

        Args:
            made: its config, with Hydra's node.
            overrides: its own.

        Raises:
            ConfigError: in one line, as the job itself would.
        """
        if self._check(made) and not self._is_settled(overrides):
            self._new.append((made, overrides))
        if self._left is not None:
            self._left -= 1
        if self._new and not self._left:
            self._check_parts()

    def _check(self, made: DictConfig) -> bool:
        """Check what takes no imports; whether a network is to be trained."""
        if takes_from_others(made):
            return False  # its values aren't known before other jobs are complete: it is checked when it is its turn
        job = job_of(made)
        if not made.restart and complete_row(job.folder, job.config_hash) is not None:
            return False
        refuse_shadowed(job.choices, job.overrides, own_folders(made))
        check_config(made, job.overrides, job.values)
        check_files(made)
        context.current().checked.add(job.config_hash)
        return not is_scoring(made)

    def _is_settled(self, overrides: list[str]) -> bool:
        """Whether all that a job has of its own is judged without making its parts: the imports take seconds."""
        swept = [o.partition("=") for o in overrides if o.partition("=")[0] not in self.fixed]
        groups = config_groups()
        return all(key in SETTLED or (key in TRIED and value in groups[key]) for key, _, value in swept)

    def _check_parts(self) -> None:
        """Make what the jobs are made of."""
        with signals.ending_at_once(last_words):
            from lightning_fisher.experiment.training.preflight import check_parts
        new, self._new = self._new, []
        with _modules_of_here():
            for made, overrides in new:
                try:
                    check_parts(made, self._known)
                except Exception as error:
                    refusal = refused(error, overrides, self.fixed)
                    if refusal is not error:  # others are the job's own to report
                        raise refusal from error


def own_folders(made: DictConfig) -> list[str]:
    """The folders of the user's own configs, of a config with Hydra's node."""
    return [source.path for source in made.hydra.runtime.config_sources if source.provider == "command-line"]


def job_of(made: DictConfig) -> Job:
    """The job of a config with Hydra's node; its folder is the working folder where its name depends on its number."""
    try:
        folder = Path(made.hydra.sweep.dir) / str(made.hydra.sweep.subdir)
    except (InterpolationToMissingValueError, MissingMandatoryValue):
        folder = Path()
    return Job(
        cfg=made,
        folder=folder,
        overrides=[str(override) for override in made.hydra.overrides.task],
        choices={k: v for k, v in made.hydra.runtime.choices.items() if not k.startswith("hydra/")},
    )


def refused(error: Exception, overrides: Sequence[str], fixed: Sequence[str]) -> Exception:
    """The error of a job, in one line that names the job; one that is no mistake in the command as it is.

    Args:
        error: what composing or checking the job raised.
        overrides: of the job.
        fixed: the options and groups that all jobs share.
    """
    if isinstance(error, RefusedJobError):
        return error
    line = explain(error, [] if isinstance(error, ConfigError) else known_options(list(overrides)), config_groups())
    swept = " ".join(o for o in overrides if o.partition("=")[0].lstrip("+~") not in fixed)
    if line is None:
        return error
    return RefusedJobError(f"{line.rstrip('.')} (job `{swept}`; no job was started)." if swept else line)


@contextmanager
def _modules_of_here() -> Iterator[None]:
    """Find modules in the working folder, as the jobs do."""
    here = os.getcwd()
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)

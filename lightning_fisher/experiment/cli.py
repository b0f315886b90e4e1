"""The command line: compose the config, run one job or a sweep, and answer mistakes with one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import lightning_fisher
from lightning_fisher.command_line import signals
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment import context
from lightning_fisher.experiment.complete import show_complete_card, show_complete_row
from lightning_fisher.experiment.config.compose import (
    CONFIG_DIR,
    CONFIG_NAME,
    ROOT,
    config_groups,
    known_options,
)
from lightning_fisher.experiment.config.error_messages import explain, listing
from lightning_fisher.experiment.config.files import check_files
from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.config.score_request import checkpoints, is_scoring, quoted_paths
from lightning_fisher.experiment.config.swept_configs import of_swept_configs, refuse_lists, refuse_repeated
from lightning_fisher.experiment.records import run_folders
from lightning_fisher.experiment.sweep import jobs
from lightning_fisher.experiment.sweep.interruption import last_words

FULL_ERROR = "HYDRA_FULL_ERROR"

SWEPT = "multirun.yaml"  # Hydra's


def task(cfg: DictConfig) -> None:
    """Run one job: in this process, or in its own one when it is part of a sweep."""
    command, job = context.current(), Job.of_hydra(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if is_scoring(cfg) and len(checkpoints(cfg)) > 1:
            run_folders.discard(job.folder)
            command.errors.append(
                ConfigError("Expected option `score.checkpoint` to be one path a job: compare without -m.")
            )
            return
        jobs.run_in_own_process(job)
        return
    if not command.debug:
        os.environ.pop(FULL_ERROR, None)  # was for Hydra; the other processes of this run are to answer in one line too
    try:
        command.enter(job.folder)
        answer(job)
    except Exception as error:  # Hydra would print its own line first: `main` raises it instead
        command.errors.append(error)


def answer(job: Job) -> None:
    """Refuse, show or do one job: what is wrong or complete is answered before torch is imported, which takes seconds.

    Raises:
        ConfigError: if the config cannot work.
    """
    if not jobs.is_checked(job):
        jobs.check_job(job)
    if is_scoring(job.cfg):
        if not show_complete_card(job):
            check_files(job.cfg)
            with signals.ending_at_once(last_words):
                from lightning_fisher.experiment.scoring.command import score
            score(job)
    elif not show_complete_row(job):
        check_files(job.cfg)
        with signals.ending_at_once(last_words):
            from lightning_fisher.experiment.training.train import train
        _mention_sweep()
        train(job)


def _mention_sweep() -> None:
    """Say that the chosen configs hold a sweep, of which a command without -m runs one job."""
    params = HydraConfig.get().sweeper.get("params")
    if params and context.rank() == 0 and os.environ.get(context.CHECKED) is None:
        print(f"One job, not the sweep over {listing(params)} that these configs hold: -m runs that.", flush=True)


def _debug_wanted(arguments: list[str]) -> bool:
    return os.environ.get(FULL_ERROR) == "1" or any(a.lower() in ("debug=true", "+debug=true") for a in arguments)


def _fail(error: Exception) -> None:
    """Print one line about an error, and where the whole traceback is if it is no mistake in the command."""
    overrides = [a for a in sys.argv[1:] if not a.startswith("-")]
    command, rank = context.current(), context.rank()
    folder = command.folder
    if isinstance(error, OSError) and error.errno is not None and (not command.started or _of_sweep(error)):
        where, option = error.filename or folder, "sweep" if _of_sweep(error) else "run"
        line = f"Expected option `hydra.{option}.dir` to be a writable folder, but got `{where}` ({error.strerror})."
        if where is None:
            line = f"Expected the current folder to be there, but it cannot be found ({error.strerror})."
    else:
        known = [] if isinstance(error, ConfigError) else known_options(overrides)
        line = explain(error, known, config_groups(), overrides) or _unexpected(error, folder, rank)
    if folder is not None and rank == 0:
        if command.sweep is not None:
            run_folders.restore_sweep_config(folder, command.sweep_config)
        run_folders.discard(folder)
    print(f"Error: {f'process {rank}: ' if rank else ''}{line}", file=sys.stderr, flush=True)


def _of_sweep(error: OSError) -> bool:
    """Whether Hydra couldn't make the folder of the sweep, or the file that it writes there first."""
    sweep, file = context.current().sweep, error.filename
    return sweep is not None and file is not None and Path(file).absolute() in (sweep, *sweep.parents, sweep / SWEPT)


def _unexpected(error: Exception, folder: Path | None, rank: int) -> str:
    """Name an error that is no mistake of the user's, and say where its traceback is."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if folder is not None and folder.is_dir() and any(folder.iterdir()):
        log = folder / (f"error-{rank}.log" if rank else "error.log")
        with contextlib.suppress(OSError):
            log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            return f"{line} (traceback: {log})"
    return f"{line} (debug=true shows the traceback)"


def _check_flags() -> None:
    """Refuse what Hydra's parser of flags would answer with its usage and another exit code.

    Raises:
        ConfigError: in one line.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        option = re.search(r"unrecognized arguments: --?([\w./]+)", message)
        hint = f" (options are written without dashes: `{option[1]}=VALUE`)" if option else ""
        raise ConfigError(f"Expected flags as `--help` lists them, but got {message}{hint}.")

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(sys.argv[1:])


def flags_first(arguments: list[str]) -> list[str]:
    """Put the switch of a sweep first: Hydra's parser refuses overrides on both sides of it."""
    switches = ("-m", "--multirun")
    return [*(a for a in arguments if a in switches), *(a for a in arguments if a not in switches)]


def with_home(arguments: list[str]) -> list[str]:
    """Write the home folder where a path begins with ``~/``, which shells leave alone behind ``=``.

    Hydra's grammar has another meaning for ``~``, and refuses it in a value. A home with letters that the grammar
    refuses stays as it is written.

    Args:
        arguments: of the command.
    """
    home = os.path.expanduser("~")
    if not re.fullmatch(r"[\w/.+@-]+", home):
        return list(arguments)
    return [a if a.startswith(("~", "-")) else re.sub(r"(?<=[=,\[])~(?=/)", home, a) for a in arguments]


def _let_workers_find_the_package() -> None:
    """Launchers start processes elsewhere: they import this package even where it is not installed."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    root = str(ROOT)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])


def main() -> None:
    """Compose, run and answer; exits with 1 on an error, and if a job of a sweep failed."""
    if "--version" in sys.argv[1:]:
        print(f"lightning-fisher {lightning_fisher.__version__} (Hydra {hydra.__version__})")
        return
    command = context.begin(debug=_debug_wanted(sys.argv[1:]))
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # Hydra raises to the handlers below instead of printing its own report
    _let_workers_find_the_package()
    register_resolvers()
    sys.argv[1:] = of_swept_configs(quoted_paths(with_home(flags_first(sys.argv[1:]))))
    jobs.end_with_parent()
    run = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(task)
    failed = False
    try:
        try:
            _check_flags()
            refuse_lists(sys.argv[1:])
            refuse_repeated(sys.argv[1:])
            if not CONFIG_DIR.is_dir():
                raise ConfigError(f"Expected the configs in {CONFIG_DIR}: install the package again.")
            run()
            if command.errors:
                raise command.errors.pop()
        except Exception as error:
            if command.debug:
                raise
            _fail(error)
            failed = True
        failed = jobs.finish() or failed
    except KeyboardInterrupt:
        if context.rank() == 0:
            print(f"\n{last_words()}", file=sys.stderr, flush=True)
        sys.exit(signals.exit_code())
    finally:
        os.environ.pop(jobs.PARENT, None)
        if before is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = before
    if failed:
        sys.exit(1)

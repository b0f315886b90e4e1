"""The command line: compose the config, run one job or a sweep, and answer mistakes with one line."""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_fisher.experiment import folders, sweep
from lightning_fisher.experiment.errors import ConfigError, explain
from lightning_fisher.experiment.options import CONFIG_DIR, CONFIG_NAME, config_groups, known_options
from lightning_fisher.experiment.run_name import register_resolvers

FULL_ERROR = "HYDRA_FULL_ERROR"
_errors: list[Exception] = []


def task(cfg: DictConfig) -> None:
    """Run one job: in this process, or in its own one when it is part of a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        sweep.run_in_own_process(cfg)
        return
    from lightning_fisher.experiment.train import train  # after composing: the imports take seconds

    try:
        train(cfg)
    except Exception as error:  # Hydra would print its own line first: `main` raises it instead
        _errors.append(error)


def _debug_wanted(arguments: list[str]) -> bool:
    return os.environ.get(FULL_ERROR) == "1" or any(a.lower() in ("debug=true", "+debug=true") for a in arguments)


def _fail(error: Exception) -> None:
    """Print one line about an error, and where the whole traceback is if it is no mistake in the command."""
    overrides = [a for a in sys.argv[1:] if not a.startswith("-")]
    line = explain(error, known_options(overrides), config_groups())
    folder = folders.current()
    if line is None and isinstance(error, OSError) and not folders.task_started():
        where = error.filename or folder
        line = f"Expected option `hydra.run.dir` to be a writable folder, but got `{where}` ({error.strerror})."
    if line is None:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            log = folder / "error.log"
            log.write_text("".join(traceback.format_exception(error)))
            line += f" (traceback: {log})"
        else:
            line += " (debug=true shows the traceback)"
    if folder is not None:
        folders.discard(folder)
    print(f"Error: {line}", file=sys.stderr, flush=True)


def _let_workers_find_the_package() -> None:
    """Launchers start processes elsewhere: they import this package even where it is not installed."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    root = str(CONFIG_DIR.parent)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])


def main() -> None:
    """Entry point of ``run.py``; exits with 1 on an error, and if a job of a sweep failed."""
    debug = _debug_wanted(sys.argv[1:])
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # Hydra raises to the handlers below instead of printing its own report
    _let_workers_find_the_package()
    register_resolvers()
    folders.forget()
    _errors.clear()
    sweep.end_with_parent()
    run = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(task)
    failed = False
    try:
        if not CONFIG_DIR.is_dir():
            raise ConfigError(f"Expected the configs in {CONFIG_DIR}: run this from a checkout (pip install -e .).")
        run()
        if _errors:
            raise _errors.pop()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        _fail(error)
        failed = True
    finally:
        if before is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = before
    failed = sweep.finish() or failed
    if failed:
        sys.exit(1)

"""A sweep: every job in a process of its own, complete rows skipped, failures survived, a report at the end."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment import context
from lightning_fisher.experiment.config.compose import refuse_shadowed
from lightning_fisher.experiment.config.error_messages import one_line
from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.config.validation import check_config
from lightning_fisher.experiment.records import run_folders
from lightning_fisher.experiment.records.result import complete_row
from lightning_fisher.experiment.sweep import job_record, kept_report
from lightning_fisher.experiment.sweep.composed_once import ComposedOnce
from lightning_fisher.experiment.sweep.progress import progress

PARENT = "LIGHTNING_FISHER_PARENT"
CHECKED = context.CHECKED
GRACE_SECONDS = 15.0


class SweepCallback(Callback):
    """Note where a sweep begins. Hydra calls it in the process of the command, not in those of the jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin the record of how the jobs end; every job stands in this one folder, named by what the sweep varies.

        The name of the folder may be made of what the sweep varies (the network, say): it is that of the command.
        """
        folder = Path(config.hydra.sweep.dir).absolute()
        record, fixed = job_record.begin(folder), fixed_options(config)
        with read_write(config):
            config.hydra.overrides.hydra.extend(
                [
                    f"hydra.sweep.dir={_quoted(config.hydra.sweep.dir)}",
                    f"+hydra.job.env_set.{job_record.RECORD}={_quoted(record)}",
                    f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(_quoted, fixed))}]",
                ]
            )
        loader = GlobalHydra.instance().config_loader()
        params = swept_params(config)
        count = number_of_jobs(config, params, loader)
        once = ComposedOnce(loader, params, fixed, count)
        loader.load_sweep_config = once  # type: ignore[method-assign]
        command = context.current()
        if count == 0:
            command.errors.append(ConfigError("Expected a sweep of at least one job, but got an empty list of values."))
        command.sweep, command.record = folder, record
        command.sweep_config = run_folders.sweep_config(folder)
        command.enter(folder)


def swept_params(config: DictConfig) -> dict[str, Any]:
    """The sweep that the configs of a command hold: options with their values."""
    params = OmegaConf.select(config, "hydra.sweeper.params")
    return dict(OmegaConf.to_container(params)) if params is not None else {}  # type: ignore[arg-type]


def fixed_options(config: DictConfig) -> list[str]:
    """The options and groups that a command sets to one value for all jobs."""
    given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    last = {override.key_or_group: override for override in given}
    return [key for key, override in last.items() if not override.is_sweep_override()]


def number_of_jobs(config: DictConfig, params: dict[str, Any], loader: ConfigLoader) -> int | None:
    """The jobs of a sweep, composed all at once; None where the sweeper is another than Hydra's own.

    Args:
        config: of the command.
        params: the sweep that its configs hold.
        loader: Hydra's, which knows what a ``glob`` stands for.
    """
    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith("BasicSweeper") or sweeper.get("max_batch_size") is not None:
        return None
    given = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
    return sum(map(len, BasicSweeper.split_arguments(parsed, None)))


def own_configs() -> list[str]:
    """Return the arguments by which a job finds the user's own configs too: the command's ``--config-dir``."""
    return [f"--config-dir={folder}" for folder in _own_folders()]


def _own_folders() -> list[str]:
    sources = HydraConfig.get().runtime.config_sources
    return [source.path for source in sources if source.provider == "command-line"]


def check_job(job: Job) -> None:
    """Check names, types and ranges of a job's config, and that its configs are those that were meant.

    Raises:
        ConfigError: in one line.
    """
    refuse_shadowed(job.choices, job.overrides, _own_folders())
    check_config(job.cfg, job.overrides)


def _quoted(path: Path | str) -> str:
    """Quote a path for Hydra's override grammar."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def job_command(overrides: list[str], folder: Path) -> list[str]:
    """Return the command of one job: what a user would type to run it alone, from a checkout or installed."""
    return [
        sys.executable,
        "-m",
        "lightning_fisher.experiment",
        *overrides,
        f"hydra.run.dir={_quoted(folder)}",
        "hydra.mode=RUN",
    ]


def job_environment(jobs_at_once: int = 1) -> dict[str, str]:
    """Return the environment of a job's process.

    Args:
        jobs_at_once: jobs that share the cores of this machine; each gets its part, unless OMP_NUM_THREADS is set.
    """
    environment = dict(os.environ)
    if jobs_at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs_at_once)))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait are not to take a core from another job
    environment.pop("HYDRA_FULL_ERROR", None)  # set by `main` for its own process
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONIOENCODING"] = "utf-8"  # what the terminal has not is replaced where it is printed
    environment[PARENT] = str(os.getpid())
    if "SLURM_JOB_ID" in environment:
        # The job starts its own ranks: Lightning is not to take the launcher's single task for them.
        environment["SLURM_JOB_NAME"] = "interactive"
    return environment


def run_in_own_process(job: Job) -> None:
    """Run the job Hydra is at in a process of its own, unless its row is complete or its config is refused.

    Its own process makes several devices safe (Lightning starts the other ranks by repeating the command), and
    whatever happens to it does not reach the other jobs. How it ended is noted in the sweep's folder; nothing
    is raised.
    """
    if context.current().sweep is None:  # a launcher's worker, which would outlive a sweep that is killed
        _end_without(os.getppid())
    folder = job.folder
    if not job.cfg.restart and complete_row(folder, job.config_hash) is not None:
        print(f"[{label(folder)}] complete already", flush=True)
        _note(folder, "complete already", 0, 0.0)
        return
    start = time.monotonic()
    try:
        if job.config_hash not in context.current().checked:  # in a launcher's worker
            check_job(job)
    except ConfigError as error:
        _say(folder, f"Error: {one_line(error)}\n")
        _note(folder, "failed", 1, time.monotonic() - start)
        return
    code = _run(job_command([*own_configs(), *job.overrides], folder), folder, job.config_hash)
    complete = code == 0 and complete_row(folder, job.config_hash) is not None
    _note(folder, "complete" if complete else "failed", code, time.monotonic() - start)


def _note(folder: Path, state: str, code: int, seconds: float) -> None:
    """Note how a job ended, and say how far the sweep is."""
    record = job_record.note(folder, state, code, seconds)
    total = context.current().jobs
    if total and state != "complete already":
        print(progress(job_record.read(record), total, jobs_at_once()), flush=True)


def is_checked(job: Job) -> bool:
    """Whether the sweep that started this process has checked the config of its job."""
    checked = os.environ.get(CHECKED)
    return checked is not None and checked == job.config_hash


def label(folder: Path) -> str:
    """Shorten the name of a job's folder for the lines of its output: without the hash, 60 characters."""
    name = folder.name.rpartition("-")[0]
    return name if len(name) <= 60 else f"{name[:57]}..."


def jobs_at_once() -> int:
    """How many jobs the launcher runs on this machine at a time, where it says so (joblib's ``n_jobs``)."""
    wanted = HydraConfig.get().launcher.get("n_jobs") or 1
    return (os.cpu_count() or 1) if wanted < 0 else int(wanted)


def _say(folder: Path, line: str) -> None:
    """Put a line of a job onto the terminal and into its ``run.log``."""
    print(f"[{label(folder)}] {line}", end="", flush=True)
    folder.mkdir(parents=True, exist_ok=True)  # a job that refuses its config removes it
    with open(folder / "run.log", "a", encoding="utf-8") as log:
        log.write(line)


def _run(command: list[str], folder: Path, checked: str) -> int:
    """Run a job, its output to the terminal and to ``run.log``; stop it if this process is interrupted.

    Args:
        command: of the job.
        folder: of the job.
        checked: the hash of its config, which was checked.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**job_environment(jobs_at_once()), CHECKED: checked},
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            _say(folder, line)
        return process.wait()
    except BaseException:
        _stop(process)
        raise


def _stop(process: subprocess.Popen[str]) -> None:
    """End a job of an interrupted sweep; a terminal's Ctrl-C has reached it already."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def finish() -> bool:
    """Sum up the sweep of this process and write its report.

    Returns:
        Whether a job failed; False where this process ran no sweep.
    """
    command = context.current()
    folder = command.leave_sweep()
    if folder is None or command.record is None or not command.record.is_dir():
        return False
    jobs = job_record.read(command.record)
    job_record.end(command.record)
    failed = [job for job in jobs if job["state"] == "failed"]
    skipped = sum(job["state"] == "complete already" for job in jobs)
    complete = f"{len(jobs) - len(failed)} of {len(jobs)} jobs complete ({skipped} before this command)"
    print(f"\n{complete}, {len(failed)} failed.")
    for job in failed:
        print(f"  failed with exit code {job['exit_code']}: {folder / job['folder'] / 'run.log'}")
    rows = [folder / job["folder"] for job in jobs if job["state"] != "failed"]
    if rows and not kept_report.show(folder, rows):
        from lightning_fisher.experiment.report.write_report import report
        from lightning_fisher.experiment.sweep.wandb_report import upload

        made = report(folder, rows)
        kept_report.keep(folder, rows, made.text(markdown=False), made.figures)
        upload(made, rows, folder)
    return bool(failed)


def end_with_parent() -> None:
    """End this process when the sweep, or the first process, that started it is gone, however it went (kill -9 too)."""
    parent = os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())  # of the other processes of this run, which repeat its command
    if parent is not None:
        _end_without(int(parent))


@functools.cache  # once a parent
def _end_without(parent: int) -> None:
    """End this process when its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()

"""A sweep: every job in a process of its own, complete rows skipped, failures survived, a report at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lightning_fisher.experiment import folders
from lightning_fisher.experiment.options import CONFIG_DIR
from lightning_fisher.experiment.row import complete_row, write_atomically
from lightning_fisher.experiment.run_name import config_hash

JOBS = ".jobs"  # in the sweep's folder: how each of its jobs ended
PARENT = "LIGHTNING_FISHER_PARENT"
GRACE_SECONDS = 15.0


@dataclass
class _Sweep:
    folder: Path | None = None


_sweep = _Sweep()


class SweepCallback(Callback):
    """Note where a sweep begins. Hydra calls it in the process of the command, not in those of the jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget how the jobs of an earlier sweep in this folder ended."""
        folder = Path(config.hydra.sweep.dir).absolute()
        shutil.rmtree(folder / JOBS, ignore_errors=True)
        _sweep.folder = folder
        folders.enter(folder)


def job_command(overrides: list[str], folder: Path) -> list[str]:
    """Return the command of one job: what a user would type to run it alone."""
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [
        sys.executable,
        str(CONFIG_DIR.parent / "run.py"),
        *overrides,
        f"hydra.run.dir='{quoted}'",
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
    environment[PARENT] = str(os.getpid())
    if "SLURM_JOB_ID" in environment:
        # The job starts its own ranks: Lightning is not to take the launcher's single task for them.
        environment["SLURM_JOB_NAME"] = "interactive"
    return environment


def run_in_own_process(cfg: DictConfig) -> None:
    """Run the job Hydra is at as ``python run.py <its overrides>``, unless its row is complete.

    Its own process makes several devices safe (Lightning starts the other ranks by repeating the command), and
    whatever happens to it does not reach the other jobs. How it ended is noted in the sweep's folder; nothing
    is raised.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if complete_row(folder, config_hash(cfg)) is not None and not cfg.restart:
        print(f"[{label(folder)}] complete already", flush=True)
        _note(folder, "complete already", 0, 0.0)
        return
    overrides = [str(override) for override in hydra_config.overrides.task]
    start = time.monotonic()
    code = _run(job_command(overrides, folder), folder)
    complete = code == 0 and complete_row(folder, config_hash(cfg)) is not None
    _note(folder, "complete" if complete else "failed", code, time.monotonic() - start)


def label(folder: Path) -> str:
    """Shorten the name of a job's folder for the lines of its output: without the hash, 40 characters."""
    name = folder.name.rpartition("-")[0]
    return name if len(name) <= 40 else f"{name[:39]}…"


def jobs_at_once() -> int:
    """How many jobs the launcher runs on this machine at a time, where it says so (joblib's ``n_jobs``)."""
    wanted = HydraConfig.get().launcher.get("n_jobs") or 1
    return (os.cpu_count() or 1) if wanted < 0 else int(wanted)


def _run(command: list[str], folder: Path) -> int:
    """Run a job, its output to the terminal and to ``run.log``; stop it if this process is interrupted."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=job_environment(jobs_at_once()),
    )
    assert process.stdout is not None
    try:
        with open(folder / "run.log", "a", encoding="utf-8") as log:
            for line in process.stdout:
                print(f"[{label(folder)}] {line}", end="", flush=True)
                log.write(line)
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def _note(folder: Path, state: str, code: int, seconds: float) -> None:
    record = {"folder": folder.name, "state": state, "exit_code": code, "seconds": round(seconds, 2)}
    jobs = folder.parent / JOBS
    jobs.mkdir(parents=True, exist_ok=True)
    write_atomically(jobs / f"{folder.name}.json", json.dumps(record))


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """Return how the jobs of the last sweep in a folder ended, in order of their names."""
    return [json.loads(path.read_text()) for path in sorted((folder / JOBS).glob("*.json"))]


def finish() -> bool:
    """Sum up the sweep of this process and write its report.

    Returns:
        Whether a job failed; False where this process ran no sweep.
    """
    folder, _sweep.folder = _sweep.folder, None
    if folder is None or not (folder / JOBS).is_dir():
        return False
    jobs = read_jobs(folder)
    failed = [job for job in jobs if job["state"] == "failed"]
    skipped = sum(job["state"] == "complete already" for job in jobs)
    complete = f"{len(jobs) - len(failed)} of {len(jobs)} jobs complete ({skipped} before this command)"
    print(f"\n{complete}, {len(failed)} failed.")
    for job in failed:
        print(f"  failed with exit code {job['exit_code']}: {folder / job['folder'] / 'run.log'}")
    rows = [folder / job["folder"] for job in jobs if job["state"] != "failed"]
    if rows:
        from lightning_fisher.experiment.report import report
        from lightning_fisher.experiment.wandb_report import upload

        upload(report(folder, rows), rows, folder)
    return bool(failed)


def end_with_parent() -> None:
    """End this process when the sweep that started it is gone, however it went (kill -9 included)."""
    parent = os.environ.pop(PARENT, None)  # not for this process's own children, whose parent is another
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()

"""Sweeps of sweeps are refused, two at once keep their own records, and names say what varies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_fisher.experiment.config.compose import ROOT
from lightning_fisher.experiment.config.swept_configs import of_swept_configs
from lightning_fisher.experiment.sweep import job_record, jobs
from tests.experiment.conftest import QUICK, Command

PLAIN = [*(option for option in QUICK if not option.startswith("reg.")), "model.max_epochs=1", "reg=none"]


@pytest.mark.parametrize(
    ("arguments", "option", "value"),
    [
        (["experiment=label_noise,digits_noise"], "experiment", "label_noise"),
        (["experiment=table1,none", "size=digits"], "experiment", "table1"),
        (["experiment=label_noise", "size=digits,full"], "size", "digits"),
        (["size=full,digits", "experiment=label_noise"], "size", "digits"),
    ],
)
def test_a_swept_group_that_holds_a_sweep_is_refused(
    arguments: list[str], option: str, value: str, command: Command, tmp_path: Path
) -> None:
    if "none" in arguments[0]:
        (tmp_path / "own" / "experiment").mkdir(parents=True)
        (tmp_path / "own" / "experiment" / "none.yaml").write_text("# @package _global_\nseed: 3\n")
        arguments = [*arguments, f"--config-dir={tmp_path / 'own'}"]
    done = command("-m", *arguments)
    assert done.code == 1
    assert (
        f"Expected option `{option}` to be one value, but got several: `{value}` holds a sweep of its own" in done.err
    )
    assert done.err.count("\n") == 1
    assert not (tmp_path / "multirun").exists()


def test_swept_groups_without_sweeps_run(command: Command, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "own" / "experiment").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\nreg:\n  bta: 1\nseed: {name == 'two':d}\n"
        )
    done = command("-m", f"--config-dir={tmp_path / 'own'}", "experiment=one,two")
    assert done.code == 1
    assert "Unknown option `reg.bta` (job `experiment=one`; no job was started)." in done.err  # nothing about sweeps


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["data=digits", "data.train_size=100,200"], ["train_size=100", "train_size=200"]),
        (["model=resnet8", "reg=none", "model.batch_size=200", "model.net.width=2,3"], ["width=2", "width=3"]),
    ],
)
def test_a_group_that_is_fixed_hides_no_option_that_varies(
    arguments: list[str], names: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_run", lambda *given: 1)
    command("-m", *arguments)
    found = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob("multirun/*/*=*") if path.is_dir())
    assert found == names


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["-m", "data=cifar10,cifar100", "data.data_dir=d"], "++data.data_dir=d"),
        (["-m", "data.data_dir=d", "data=cifar10,digits"], "++data.data_dir=d"),
        (["-m", "reg=sam,asam", "reg.rho=0.1,0.2"], "++reg.rho=0.1,0.2"),
        (["-m", "reg=sam,asam", "reg.every_n_steps=2"], "reg.every_n_steps=2"),  # the default has it
        (["-m", "reg=sam,asam", "reg.roh=0.1"], "reg.roh=0.1"),  # a mistake
        (["data=cifar10", "data.data_dir=d"], "data.data_dir=d"),
    ],
)
def test_options_of_swept_configs(given: list[str], passed: str) -> None:
    arguments = of_swept_configs(given)
    assert passed in arguments
    assert [argument.lstrip("+") for argument in arguments] == given


def test_names_say_what_varies(command: Command, tmp_path: Path) -> None:
    """The options that all jobs share would fill the 80 characters."""
    done = command("-m", *PLAIN, "seed=7,8")
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "multirun").iterdir()
    names = sorted(run.name.rpartition("-")[0] for run in folder.iterdir() if run.is_dir())
    assert names == ["seed=7", "seed=8"]
    assert "[seed=7] " in done.out


def test_a_sweep_finds_runs_of_another_name(command: Command, tmp_path: Path) -> None:
    """Runs are found by their hash, as when they were named by all options."""
    command("-m", *PLAIN, "seed=7,8")
    (run,) = tmp_path.glob("multirun/*/seed=7-*")
    run.rename(run.with_name("width=2_reg=none_seed=7-" + run.name.rpartition("-")[2]))
    again = command("-m", *PLAIN, "seed=7,8")
    assert "2 of 2 jobs complete (2 before this command)" in again.out


def test_two_sweeps_at_once_report_their_own_jobs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    sweeps = [
        subprocess.Popen(
            [sys.executable, "-m", "lightning_fisher.experiment", "-m", *PLAIN, f"seed={seeds}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seeds in ("1", "1,2")  # one job is in both
    ]
    outputs = [sweep.communicate()[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert "1 of 1 jobs complete" in outputs[0]
    assert "2 of 2 jobs complete" in outputs[1]
    assert not list(tmp_path.glob("multirun/*/.jobs"))


def test_records_of_killed_sweeps_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = job_record.begin(tmp_path).name.partition("+")[0]
    dead = tmp_path / ".jobs" / f"{host}+{ended.stdout.strip()}-1"
    alive = tmp_path / ".jobs" / f"{host}+{os.getppid()}-1"
    elsewhere = tmp_path / ".jobs" / f"other{host}+{ended.stdout.strip()}-1"
    for record in (dead, alive, elsewhere):
        monkeypatch.setenv(job_record.RECORD, str(record))
        job_record.note(tmp_path / "run", "complete", 0, 1.0)
    own = job_record.begin(tmp_path)
    assert not dead.exists()
    assert (alive.exists(), elsewhere.exists()) == (True, True)
    monkeypatch.setenv(job_record.RECORD, str(own))
    job_record.note(tmp_path / "run", "failed", 3, 1.0)
    assert [job["exit_code"] for job in job_record.read(own)] == [3]
    job_record.end(own)
    assert not own.exists()

"""Sweeps: a process for each job, complete rows skipped, failures survived and told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME, config_groups
from lightning_fisher.experiment.config.config_hash import config_hash
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.config.validation import check_config
from lightning_fisher.experiment.sweep import jobs
from tests.experiment.conftest import Command
from tests.experiment.synthetic import row

# Stands for run.py: notes that it ran, and writes a row; fails for seed 1 while the file `fail` exists.
JOB = """
import json, pathlib, sys
folder, template = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
with open("ran.txt", "a") as file: file.write(folder.name + "\\n")
print("job", folder.name)
if "seed=1" in folder.name and pathlib.Path("fail").exists(): sys.exit(3)
(folder / "result.json").write_text(json.dumps({**template, "config_hash": folder.name.rpartition("-")[2]}))
"""


@pytest.fixture
def fake_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(overrides: list[str], folder: Path) -> list[str]:
        return [sys.executable, "-c", JOB, str(folder), json.dumps(row())]

    monkeypatch.setattr(jobs, "job_command", command)


@pytest.mark.usefixtures("fake_jobs")
def test_failed_jobs_are_told_and_only_they_run_again(command: Command, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    first = command("-m", "seed=0,1,2")
    assert first.code == 1
    assert "2 of 3 jobs complete (0 before this command), 1 failed" in first.out
    folder = tmp_path / "multirun" / "digits-resnet8"
    (failed,) = folder.glob("seed=1-*")
    assert f"failed with exit code 3: {failed / 'run.log'}" in first.out
    assert "job seed=1" in (failed / "run.log").read_text()
    assert (folder / "report.md").is_file()

    (tmp_path / "fail").unlink()
    (tmp_path / "ran.txt").unlink()
    second = command("-m", "seed=0,1,2")
    assert second.code == 0
    assert "3 of 3 jobs complete (2 before this command), 0 failed" in second.out
    lines = [line for line in (first.out + second.out).splitlines() if line.startswith("[sweep]")]
    assert [line.partition(",")[0] for line in lines] == [
        f"[sweep] {n} of 3 jobs done" for n in (1, 2, 3, 2)
    ]  # then one complete already
    assert (tmp_path / "ran.txt").read_text().split() == [failed.name]


@pytest.mark.usefixtures("fake_jobs")
def test_folders_are_stable_and_named_by_what_varies(command: Command, tmp_path: Path) -> None:
    for _ in range(2):
        command("-m", "seed=0", "reg.beta=1,2")
    names = sorted(path.name for path in (tmp_path / "multirun" / "digits-resnet8").glob("beta*"))
    assert [name.rpartition("-")[0] for name in names] == ["beta=1", "beta=2"]


@pytest.mark.usefixtures("fake_jobs")
def test_another_configuration_does_not_count_as_complete(command: Command, tmp_path: Path) -> None:
    command("-m", "seed=0")
    command("-m", "seed=0", "model.max_epochs=7")
    command("-m", "seed=0", "logger=tensorboard")  # changes no result: complete already
    assert len((tmp_path / "ran.txt").read_text().split()) == 2


def test_job_command_is_what_a_user_would_type(tmp_path: Path) -> None:
    folder = tmp_path / "it's=odd, (really)"
    command = jobs.job_command(["seed=1", "logger=[csv,wandb]"], folder)
    assert command[:3] == [sys.executable, "-m", "lightning_fisher.experiment"]
    parsed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(command[3:])}
    assert parsed == {"seed": 1, "logger": ["csv", "wandb"], "hydra.run.dir": str(folder), "hydra.mode": "RUN"}


def test_jobs_find_the_own_configs_of_the_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(jobs, "_run", lambda job, folder, checked: commands.append(job) or 1)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("defaults: [resnet8]\nname: mine\n")
    command("--config-dir=own", "-m", "model=mine")
    assert f"--config-dir={tmp_path / 'own'}" in commands[0]
    assert "model=mine" in commands[0]


def test_jobs_inside_slurm_start_their_own_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    environment = jobs.job_environment()
    assert environment["SLURM_JOB_NAME"] == "interactive"
    assert "HYDRA_FULL_ERROR" not in environment


def test_a_job_ends_with_its_sweep(tmp_path: Path) -> None:
    """The sweep's process is killed: its job does not go on alone."""
    job = (
        "from lightning_fisher.experiment.sweep.jobs import end_with_parent; import time; "
        "end_with_parent(); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys; from lightning_fisher.experiment.sweep.jobs import job_environment; "
        f"child = subprocess.Popen([sys.executable, '-c', {job!r}], env=job_environment(), stdout=subprocess.PIPE); "
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=CONFIG_DIR.parent)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().split()[2] if Path("/proc").is_dir() else "?"
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the job is still running")


STUDIES = {  # jobs of the full and of the small form
    "scenario_confusion": (30, 15),
    "scenario_augmentation": (20, 9),
    "scenario_batch_size": (20, 12),
    "select_beta": (9, 9),
    "table1": (80, 12),
    "table2": (6, 6),
    "table3": (30, 12),
    "step_cost": (2, 4),
    "label_noise": (45, 18),
    "label_noise_beta": (30, 70),
    "step_forms": (20, 20),
    "digits_noise": (6, 6),
    "differences": (72, 120),
    "methods": (420, 700),
    "select_parameter": (5, 5),
    "zoo": (120, 72),
    "demo": (2, 2),
}


def jobs_of(study: str, size: str) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    cfg = compose(CONFIG_NAME, overrides=[f"experiment={study}", f"size={size}"], return_hydra_config=True)
    params = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(params), None)
    return [[*job, f"experiment={study}", f"size={size}"] for job in batch]


def test_names_change_with_what_changes_the_result() -> None:
    """And not with how the passes are made, or with an option that came later, at what there was before."""
    register_resolvers()
    job = ["experiment=step_forms", "size=digits", "reg.gradient=full", "reg.perturbed=1", "seed=0"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        names = [
            config_hash(compose(CONFIG_NAME, overrides=[*job, *more]))
            for more in ([], ["reg.passes=loop"], ["reg.scaling=linear"], ["reg.scaling=sqrt"], ["reg.beta=999"])
        ]
        before = compose(CONFIG_NAME, overrides=[*job, "~reg.passes", "~reg.scaling"])
        assert names[:3] == [config_hash(before)] * 3
    assert len(set(names)) == 3


def test_every_study_is_listed() -> None:
    assert set(config_groups()["experiment"]) == set(STUDIES)


@pytest.mark.parametrize("size", ["full", "digits"])
@pytest.mark.parametrize("study", STUDIES)
def test_studies_expand_to_jobs_that_compose(study: str, size: str) -> None:
    if study in ("digits_noise", "demo"):
        size = "full"
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        jobs = jobs_of(study, size)
        assert len(jobs) == STUDIES[study][size == "digits"]
        hashes = set()
        # Those that take the value that others chose compose once these are complete.
        jobs = [job for job in jobs if not job[0].startswith(("comparison.job=epochs", "comparison.job=evaluations"))]
        for job in (jobs[0], jobs[-1]):
            cfg = compose(CONFIG_NAME, overrides=job)
            check_config(cfg, job)
            assert OmegaConf.select(cfg, "study.name") == study
            hashes.add(config_hash(cfg))
            if size == "digits" or study == "digits_noise":
                assert cfg.data.name == "digits"
        assert len(hashes) == 2

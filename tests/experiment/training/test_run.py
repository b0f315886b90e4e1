"""A run end to end: its files, its row, the second time, and after an interruption."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_fisher.experiment.training.history import History
from tests.experiment.conftest import QUICK, Command

NUMBERS = [
    "train_loss",
    "train_error",
    "test_loss",
    "test_error",
    "test_error_top5",
    "val_loss",
    "val_error",
    "gamma",
    "gamma_std",
    "gamma_residual",
    "gamma_sensitivity",
    "gamma_magnitude",
    "gamma_direction",
    "robustness",
    "frobenius_norm",
    "spectral_radius",
    "fit_seconds",
    "seconds_per_epoch",
    "peak_memory_mib",
    "metric_seconds",
    "parameters",
    "epochs",
    "steps",
    "switch_epoch",
    "switch_step",
    "step_ms_plain",
    "step_ms_regularized",
]


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_measures_and_forms_in_the_row(command: Command, tmp_path: Path) -> None:
    wanted = ["metric.measures=[gamma_layer,gamma,path_norm,distance_from_initialization]", "metric.at_end=gamma"]
    result = command(*QUICK, *wanted, "metric.residual=false", "metric.scale=layer", "metric.logit_norm=0.04",
                     "hydra.run.dir=run")  # fmt: skip
    assert result.code == 0, result.err
    row = read(tmp_path / "run")
    assert {"gamma_layer", "gamma_layer_std", "path_norm", "distance_from_initialization"} <= row.keys()
    assert row["gamma_residual"] == 0.0
    assert row["gamma"] == pytest.approx(row["gamma_layer"], abs=1e-3)  # the same form, from two passes
    assert row["gamma"] == pytest.approx(row["gamma_sensitivity"] + row["gamma_direction"], abs=1e-6)
    assert row["distance_from_initialization"] > 0
    assert set(row["measure_seconds"]) == {"gamma_layer", "path_norm", "distance_from_initialization"}
    assert row["config"]["metric.scale"] == "layer"


def test_run_writes_its_folder_and_row(command: Command, tmp_path: Path) -> None:
    result = command(*QUICK, "hydra.run.dir=run")
    assert result.code == 0, result.err
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml",
        "overrides.yaml",
        "checkpoints",
        "csv",
        "history.csv",
        "result.json",
        "training.png",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    row = read(run)
    for key in NUMBERS:
        assert isinstance(row[key], (int, float)), key
        assert math.isfinite(row[key]), key
    assert 0 <= row["test_error_top5"] <= row["test_error"] <= 100
    assert row["gamma"] == pytest.approx(row["gamma_magnitude"] + row["gamma_direction"])
    assert (row["epochs"], row["steps"], row["stop_reason"], row["seed"]) == (3, 12, "max_epochs", 0)
    assert (row["switch_epoch"], row["switch_step"]) == (2, 8)
    assert row["choices"]["model"] == "resnet8"
    assert row["config"]["reg.beta"] == 10.0
    assert row["versions"]["torch"] == torch.__version__
    assert row["hardware"]["device"] == "cpu"


def test_run_tells_what_it_did(command: Command) -> None:
    out = command(*QUICK, "hydra.run.dir=run").out
    for text in (
        "epoch   1/3",
        "plain",
        "regularized",
        "epochs 1-2 plain",
        "epochs 3-3 regularized",
        "test error",
        "gamma",
    ):
        assert text in out
    assert "run/result.json" in out
    assert "run/training.png" in out


def test_history_has_gamma_only_where_it_was_measured(command: Command, tmp_path: Path) -> None:
    command(*QUICK, "hydra.run.dir=run", "metric.every_n_validations=2")
    with open(tmp_path / "run" / "history.csv") as file:
        records = list(csv.DictReader(file))
    assert [bool(record["gamma"]) for record in records] == [False, True, False]
    assert [record["regularized"] for record in records] == ["0", "0", "1"]
    assert [float(record["lr"]) for record in records] == pytest.approx([0.1, 0.1, 0.001])  # both milestones at epoch 2
    assert [bool(record["fisher/penalty"]) for record in records] == [False, False, True]


def test_the_same_command_finds_its_complete_run(command: Command, tmp_path: Path) -> None:
    first = command(*QUICK)
    (folder,) = (tmp_path / "outputs" / "digits-resnet8").iterdir()
    written = (folder / "result.json").stat().st_mtime_ns
    second = command(*QUICK)
    assert "Complete already" in second.out
    assert "test error" in second.out
    assert (folder / "result.json").stat().st_mtime_ns == written
    third = command(*QUICK, "restart=true")
    assert third.code == first.code == 0
    assert (folder / "result.json").stat().st_mtime_ns > written


def test_another_configuration_is_not_mixed_into_a_folder(command: Command, tmp_path: Path) -> None:
    command(*QUICK, "hydra.run.dir=run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    result = command(*QUICK, "hydra.run.dir=run", "seed=1")
    assert result.code == 1
    assert "hydra.run.dir" in result.err
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert all(before[path] == time for path, time in after.items())


@pytest.mark.parametrize(("scheduler", "compiled"), [("milestones", False), ("plateau", False), ("milestones", True)])
def test_resumed_equals_uninterrupted(
    scheduler: str, compiled: bool, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*QUICK, "model.max_epochs=4", f"model/scheduler={scheduler}", f"model.compile={compiled}"]
    if scheduler == "plateau":  # the learning rate drops after every epoch
        options += ["model.scheduler.patience=0", "+model.scheduler.threshold=0.99"]
    command(*options, "hydra.run.dir=whole")
    with monkeypatch.context() as patch:
        original = History.on_train_epoch_start

        def interrupt(self: History, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt
            original(self, trainer, module)

        patch.setattr(History, "on_train_epoch_start", interrupt)
        interrupted = command(*options, "hydra.run.dir=parts")
    assert interrupted.code == 130
    assert not (tmp_path / "parts" / "result.json").exists()
    resumed = command(*options, "hydra.run.dir=parts")
    assert "continuing from parts/checkpoints/last.ckpt" in resumed.out
    whole, parts = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][key]), key
    rows = [read(tmp_path / name) for name in ("whole", "parts")]
    for key in (
        "train_loss",
        "test_loss",
        "test_error",
        "gamma",
        "robustness",
        "epochs",
        "switch_epoch",
        "config_hash",
    ):
        assert rows[0][key] == rows[1][key], key
    assert len((tmp_path / "parts" / "history.csv").read_text().splitlines()) == 5


def test_divergence_is_told(command: Command, tmp_path: Path) -> None:
    result = command(*QUICK, "hydra.run.dir=run", "model.optimizer.lr=1e30")
    assert result.code == 1
    assert "diverged" in result.err
    assert not (tmp_path / "run" / "result.json").exists()

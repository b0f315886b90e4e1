"""Files that carry code are refused or passed over at every entry, and the code never runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_fisher import FisherMetric, FisherMonitor, FisherRegularizer
from lightning_fisher.callbacks import AtomicCheckpointIO, PlateauStep, RandomState, StopAtConvergence
from lightning_fisher.data import load_arrays, load_cifar10, load_cifar100
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.checkpoints import resumable
from lightning_fisher.experiment.records.result import read_row
from lightning_fisher.experiment.scoring.weights import read_checkpoint
from tests.callbacks.tiny import Classifier, image_batches, loader, mlp, multi_step, seeded
from tests.experiment.conftest import QUICK, Command
from tests.security.payload import Payload, works


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What the code would make."""
    assert works(tmp_path / "ran")
    return tmp_path / "ran"


def checkpoint(path: Path, content: Any, zipped: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("place", ["whole", "callbacks", "state_dict"])
def test_checkpoints_to_resume_from(place: str, zipped: bool, marker: Path, tmp_path: Path) -> None:
    content = Payload(marker) if place == "whole" else {"epoch": 1, place: {"a": Payload(marker)}}
    path = checkpoint(tmp_path / "checkpoints" / "last.ckpt", content, zipped)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    assert resumable(tmp_path) is None  # as a damaged one: the run starts from scratch
    assert not marker.exists()
    torch.load(next((tmp_path / "checkpoints").glob("*.ckpt")), weights_only=False)
    assert marker.exists()  # it was a working payload


def test_torchscript_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "checkpoints" / "last.ckpt")
    assert resumable(tmp_path) is None


@pytest.mark.parametrize("force", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_a_command_that_continues(
    force: bool,
    marker: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the environment asks torch for unsafe loads by default."""
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    run = [*QUICK, "hydra.run.dir=run", "metric.at_end=none", "metric.every_n_validations=null", "model.max_epochs=2"]
    assert command(*run).code == 0
    (tmp_path / "run" / "result.json").unlink()
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", {**kept, "extra": Payload(marker)})
    result = command(*run)
    assert result.code == 0, result.err
    assert "Cannot read" in result.out
    assert (tmp_path / "run" / "result.json").is_file()  # from the checkpoint before
    assert not marker.exists()


def test_a_file_of_weights_to_score(marker: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "weights.pt", {"state_dict": Payload(marker)})
    with pytest.raises(ConfigError, match="Python objects, which are not executed"):
        read_checkpoint(path)
    assert not marker.exists()


def test_the_config_of_a_run_to_score(marker: Path, command: Command, tmp_path: Path) -> None:
    """A run folder from somewhere: its config may name a function of any module."""
    run = tmp_path / "theirs"
    checkpoint(run / "checkpoints" / "last.ckpt", {"state_dict": {}})
    for config in (
        f"model: {{name: a, net: {{_target_: os.makedirs, name: {marker}}}}}\ndata: {{name: digits}}\n",
        f"model: {{name: a, net: {{}}}}\ndata: {{_target_: os.makedirs, name: {marker}}}\n",
        f"model: !!python/object/apply:os.makedirs [{marker}]\ndata: {{}}\n",
    ):
        (run / "config.yaml").write_text(config)
        result = command(f"score.checkpoint={run}")
        assert result.code == 1
        assert len([line for line in result.err.splitlines() if line.strip()]) == 1, result.err
        assert not marker.exists()


def test_yaml_of_ones_own(marker: Path, command: Command, tmp_path: Path) -> None:
    """`--config-dir` is trusted as far as its `_target_`s go; a YAML tag runs nothing all the same."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "a.yaml").write_text(f"seed: !!python/object/apply:os.makedirs [{marker}]\n")
    result = command(f"--config-dir={tmp_path}/mine", "experiment=a")
    assert result.code == 1
    assert not marker.exists()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return file.getvalue()


def object_array(marker: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["an object array", "a pickle", "a pickle as a member"])
def test_archives_of_images(kind: str, marker: Path, tmp_path: Path) -> None:
    pickled = pickle.dumps(Payload(marker))
    content = {
        "an object array": archive(train_images=object_array(marker)),
        "a pickle": pickled,
        "a pickle as a member": archive(train_images=pickled),
    }[kind]
    (tmp_path / "my.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"my\.npz"):
        load_arrays(num_classes=2, channels=1, image_size=8, path=str(tmp_path / "my.npz"))
    assert not marker.exists()


@pytest.mark.parametrize("load", [load_cifar10, load_cifar100])
def test_cifar_batches_are_unpickled_only_if_their_checksums_are_right(load: Any, marker: Path, tmp_path: Path) -> None:
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "train", "test", "meta"):
            (tmp_path / folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(FileNotFoundError, match="incomplete"):
        load(data_dir=str(tmp_path), download=False)
    assert not marker.exists()


def test_rows_are_json(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(pickle.dumps(Payload(marker)))
    assert read_row(tmp_path) is None
    assert not marker.exists()


def test_what_the_package_saves_loads_without_code(tmp_path: Path) -> None:
    """A checkpoint with every callback in it, and the state of a metric: plain values and tensors."""
    callbacks = [
        FisherRegularizer(5.0, num_sub_batches=4),
        FisherMonitor(torch.utils.data.TensorDataset(*image_batches([20])[0]), num_subsets=2, subset_size=5),
        RandomState(),
        PlateauStep(),
        StopAtConvergence(monitor="train_loss_epoch", plateaus=9),
    ]
    trainer = Trainer(
        max_epochs=2,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Classifier(seeded(mlp), scheduler=multi_step(1)), loader(image_batches([16] * 3)))
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    kept = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    names = {name.partition("{")[0] for name in kept["callbacks"]}
    assert {"FisherRegularizer", "FisherMonitor", "StopAtConvergence"} <= names
    assert "lightning_fisher.random_state" in kept
    metric = FisherMetric()
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "metric.pt")
    torch.load(tmp_path / "metric.pt", weights_only=True)

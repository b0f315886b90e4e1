from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_fisher.experiment.records.checkpoints import RunCheckpointIO, resumable
from lightning_fisher.experiment.records.run_folders import CHECKPOINTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / CHECKPOINTS


def save(folder: Path, epoch: int) -> None:
    RunCheckpointIO().save_checkpoint({"epoch": epoch, "weights": torch.ones(3)}, folder / "last.ckpt")


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert resumable(tmp_path) is None


def test_the_previous_checkpoint_is_kept(folder: Path) -> None:
    save(folder, 1)
    save(folder, 2)
    assert torch.load(folder / "last.ckpt")["epoch"] == 2
    assert torch.load(folder / "previous.ckpt")["epoch"] == 1
    assert resumable(folder.parent) == folder / "last.ckpt"


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "nonsense"])
def test_a_damaged_checkpoint_falls_back(damage: str, folder: Path) -> None:
    save(folder, 1)
    save(folder, 2)
    last = folder / "last.ckpt"
    data = last.read_bytes()
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "nonsense": b"x" * 100}[damage])
    assert resumable(folder.parent) == folder / "previous.ckpt"


def test_a_damaged_checkpoint_never_replaces_one_that_can_be_read(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for epoch in (1, 2):
        save(folder, epoch)
    last = folder / "last.ckpt"
    last.write_bytes(b"half of it")
    assert resumable(folder.parent) == folder / "previous.ckpt"
    assert f"Cannot read {last} (" in capsys.readouterr().out
    assert (folder / "damaged.ckpt").read_bytes() == b"half of it"
    assert not last.exists()
    save(folder, 2)  # a kill right now leaves both
    assert torch.load(folder / "previous.ckpt")["epoch"] == 1
    assert torch.load(folder / "last.ckpt")["epoch"] == 2


def test_a_failed_save_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 1)

    def fail(checkpoint: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(folder, 2)
    assert torch.load(folder / "last.ckpt")["epoch"] == 1

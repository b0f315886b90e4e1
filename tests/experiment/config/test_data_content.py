"""The content of the user's own data is part of a run's identity, their place and the machine's options are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_fisher.data.sources.fingerprint import archive_fingerprint, fingerprint, folder_fingerprint
from tests.experiment.conftest import QUICK, Command

ARRAYS = [
    *(option for option in QUICK if not option.startswith("reg.")),
    "data=arrays",
    "data.num_classes=2",
    "data.channels=1",
    "data.image_size=8",
    "data.validation_size=10",
    "model.batch_size=20",
    "model.max_epochs=1",
    "reg=none",
]


def save(path: Path, seed: int = 0, compressed: bool = False, **more: np.ndarray) -> Path:
    generator = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", 50), ("test", 20)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 2, n)
    (np.savez_compressed if compressed else np.savez)(path, **arrays, **more)
    return path


def test_places_and_forms_of_one_content_are_one_run(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "a.npz")
    first = command(*ARRAYS, "data.path=a.npz")
    assert first.code == 0, first.err
    (run,) = (tmp_path / "outputs" / "arrays-resnet8").iterdir()
    (tmp_path / "sub").mkdir()
    save(tmp_path / "sub" / "other name.npz", compressed=True, extra=np.ones(3))
    for path in ("./a.npz", str(tmp_path / "a.npz"), "'sub/other name.npz'"):
        again = command(*ARRAYS, f"data.path={path}", "trainer.log_every_n_steps=3", "trainer=cpu")
        assert "Complete already" in again.out, path
    assert list((tmp_path / "outputs" / "arrays-resnet8").iterdir()) == [run]


def test_other_content_under_the_same_path_is_another_run(command: Command, tmp_path: Path) -> None:
    for seed in (0, 1):
        save(tmp_path / "a.npz", seed)
        done = command(*ARRAYS, "data.path=a.npz")
        assert done.code == 0, done.err
        assert "Complete already" not in done.out
    assert len(list((tmp_path / "outputs" / "arrays-resnet8").iterdir())) == 2


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


def test_folders_are_told_apart_by_names_and_contents(folders: Path, tmp_path: Path) -> None:
    before = folder_fingerprint(folders)
    copy = tmp_path / "copy"
    shutil.copytree(folders, copy)
    (copy / "train" / "cat" / "._0.png").write_bytes(b"hidden")
    assert folder_fingerprint(copy) == before
    assert fingerprint("imagenet", {"data_dir": str(copy)}) == before
    file = copy / "train" / "cat" / "0.png"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # as long as before
    file.write_bytes(content)
    changed = folder_fingerprint(copy)
    file.rename(file.with_name("2.png"))
    assert len({before, changed, folder_fingerprint(copy)}) == 3


def test_large_folders_are_told_apart_by_sizes(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_fisher.data.sources.fingerprint.READ_AT_MOST", 10)
    before = folder_fingerprint(folders)
    with open(folders / "val" / "dog" / "1.png", "ab") as file:
        file.write(b"x")
    assert folder_fingerprint(folders) != before


def test_what_is_missing_has_none(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    assert archive_fingerprint(tmp_path / "none.npz") is None
    assert archive_fingerprint(tmp_path / "text.npz") is None
    assert folder_fingerprint(tmp_path) is None
    assert fingerprint("arrays", {"path": None}) is None
    assert fingerprint("digits", {}) is None

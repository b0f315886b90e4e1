"""Data that are missing, damaged, or not what the options say: one line, and nothing is written."""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.training.build import Run
from lightning_fisher.experiment.training.preflight import load_training_data
from tests.experiment.conftest import QUICK, Command
from tests.experiment.refusals import built, refusal

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
OPTIONS = ["data=arrays", "data.channels=1", "data.image_size=8", "data.validation_size=20", "data.augmentation=no-aug"]


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    made: dict[str, np.ndarray | None] = {
        "train_images": random.integers(0, 255, (60, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(60) % 10,
        "test_images": random.integers(0, 255, (20, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(20) % 10,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def saved(**changes: np.ndarray | None) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays(**changes))  # type: ignore[arg-type]
    return file.getvalue()


def claims_a_petabyte() -> bytes:
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(file, "w") as archive:
        for key in KEYS:
            archive.writestr(f"{key}.npy", header.getvalue())
    return file.getvalue()


def zipped(**files: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


def flipped(data: bytes) -> bytes:
    return data[:300] + bytes([data[300] ^ 0xFF]) + data[301:]


def pickled_array() -> bytes:
    return saved(train_labels=np.array([object()] * 60))


def one_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "empty": (lambda: b"", ["`data.path`", "no archive, or only part of one"]),
    "truncated": (lambda: saved()[: len(saved()) // 2], ["`data.path`", "no archive, or only part of one"]),
    "a text": (lambda: b"hello\n", ["`data.path`", "no archive"]),
    "a pickle": (lambda: pickle.dumps([1, 2]), ["`data.path`", "no archive"]),
    "one array": (one_array, ["`data.path`", "no archive"]),
    "a flipped bit": (lambda: flipped(saved()), ["`data.path`", "CRC"]),
    "Python objects": (pickled_array, ["`data.path`", "Python objects"]),
    "another zip": (lambda: zipped(readme="x"), ["train_images", "but got readme"]),
    "no array": (lambda: zipped(**{f"{key}.npy": "x" for key in KEYS}), ["`data.path`", "no arrays"]),
    "a petabyte": (claims_a_petabyte, ["`data.path`", "allocate"]),
    "one missing": (lambda: saved(test_labels=None), ["test_labels", "but got train_images"]),
    "float images": (lambda: saved(train_images=np.zeros((60, 8, 8))), ["`train_images`", "uint8", "float64"]),
    "another shape": (lambda: saved(train_images=np.zeros((60, 9, 8), np.uint8)), ["[N, 8, 8, 1]", "[60, 9, 8, 1]"]),
    "flat images": (lambda: saved(test_images=np.zeros((20, 64), np.uint8)), ["`test_images`", "[20, 64]"]),
    "no images": (lambda: saved(test_images=np.zeros((0, 8, 8), np.uint8)), ["`test_images`", "[0, 8, 8, 1]"]),
    "one color": (lambda: saved(train_images=np.full((60, 8, 8), 7, np.uint8)), ["the same", "channel 0"]),
    "a label too large": (lambda: saved(train_labels=np.arange(60) % 11), ["`train_labels`", "0 to 9", "0 to 10"]),
    "a negative label": (lambda: saved(test_labels=np.arange(20) % 10 - 1), ["`test_labels`", "-1 to 8"]),
    "float labels": (lambda: saved(train_labels=np.zeros(60)), ["`train_labels`", "integers", "float64"]),
    "one class": (lambda: saved(train_labels=np.full(60, 7)), ["`train_labels`", "at least 2 classes", "all 60 are 7"]),
    "half a validation": (
        lambda: saved(val_images=np.zeros((5, 8, 8), np.uint8)),
        ["val_images and val_labels", "or neither, but got val_images"],
    ),
    "too few labels": (lambda: saved(train_labels=np.zeros(59, int)), ["`train_labels`", "[60]", "[59]"]),
    "columns of labels": (lambda: saved(train_labels=np.zeros((60, 2), int)), ["`train_labels`", "[60, 2]"]),
}


@pytest.fixture(scope="module")
def command_for_arrays(tmp_path_factory: pytest.TempPathFactory) -> tuple[DictConfig, Run]:
    """A command whose archive is still to be named."""
    return built([*QUICK, *OPTIONS], tmp_path_factory.mktemp("arrays"))


@pytest.mark.parametrize(("make", "expected"), ARCHIVES.values(), ids=ARCHIVES)
def test_archive_is_refused(
    make: Callable[[], bytes], expected: list[str], command_for_arrays: tuple[DictConfig, Run], tmp_path: Path
) -> None:
    (tmp_path / "my.npz").write_bytes(make())
    cfg, run = command_for_arrays
    run.datamodule = instantiate(cfg.data, path=str(tmp_path / "my.npz"))
    with pytest.raises(ConfigError) as caught:
        load_training_data(run, cfg)
    line = str(caught.value)
    assert "\n" not in line
    for text in expected:
        assert text in line, line
    assert "allow_pickle" not in line  # no advice to open it all the same


def test_a_command_with_a_damaged_archive(command: Command, tmp_path: Path) -> None:
    (tmp_path / "my.npz").write_bytes(saved()[:-10])
    result = command(*QUICK, *OPTIONS, "data.path=my.npz")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "`data.path`" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["my.npz"]


WRONG_OPTIONS = [
    (["data.num_classes=5"], ["`train_labels`", "0 to 4"]),
    (["data.num_classes=1"], ["`data.num_classes`", "at least 2"]),
    (["data.channels=3"], ["[N, 8, 8, 3]", "[60, 8, 8, 1]"]),
    (["data.image_size=[8]"], ["`data.image_size`", "[height,width]"]),
    (["data.image_size=[8,9]"], ["[N, 8, 9, 1]", "[60, 8, 8, 1]"]),
    (["data.mean=0.5", "data.std=0.5"], ["`data.mean`", "a list of numbers"]),
    (["data.mean=[0.5]", "data.std=[0]"], ["`data.std`", "positive"]),
    (["data.mean=[0.5,0.5]", "data.std=[1,1]"], ["`data.mean`", "`data.std`", "1 numbers"]),
    (["data.validation_size=60"], ["`data.validation_size`", "0 to 59"]),
    (["data.train_size=100"], ["`data.train_size`", "1 to 40", "100"]),
    (
        ["data.train_size=1", "metric.at_end=none", "metric.every_n_validations=null"],
        ["`data.train_size`", "at least 2"],
    ),
    (["data.label_noise=1.5"], ["`data.label_noise`", "0 to 1"]),
    (["data.num_workers=-1"], ["`data.num_workers`", "at least 0"]),
    (["data.path=5"], ["`data.path`", "a text"]),
    (["data.path=null"], ["`data.path`", ".npz"]),
    (["data.path=."], ["there is no file '.'"]),
    (["data.name=cifar10"], ["cifar10", "path"]),
    (["data.name=nope"], ["`data.name`", "digits", "nope"]),
    (["+data.download=true"], ["arrays", "download"]),
    (["data.augmentation=random-resized-crop"], ["`data.augmentation`", "4-crop-f", "random-resized-crop"]),
]


@pytest.mark.parametrize(("options", "expected"), WRONG_OPTIONS, ids=[" ".join(o) for o, _ in WRONG_OPTIONS])
def test_option_is_refused(options: list[str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "my.npz").write_bytes(saved())
    line = refusal([*QUICK, *OPTIONS, f"data.path={tmp_path}/my.npz", *options], tmp_path / "run")
    assert line is not None
    for text in expected:
        assert text in line, line


def test_the_archive_itself_is_right(tmp_path: Path) -> None:
    (tmp_path / "my.npz").write_bytes(saved())
    right = [*QUICK, *OPTIONS, f"data.path={tmp_path}/my.npz"]
    assert refusal(right, tmp_path / "run") is None
    assert refusal([*right, "data.image_size=[8,8]", "data.mean=[0.5]", "data.std=[0.2]"], tmp_path / "run") is None


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_cifar_of_other_content_is_refused(data: str, tmp_path: Path) -> None:
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[data]
    (tmp_path / folder).mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "train", "test", "meta"):
        (tmp_path / folder / name).write_bytes(pickle.dumps({"data": 1}))
    line = refusal([f"data={data}", f"data.data_dir={tmp_path}", "data.download=false"], tmp_path / "run")
    assert line is not None
    assert "not found, or is incomplete" in line


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(12):
                Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


FOLDER_OPTIONS = ["data=imagenet", "data.num_classes=2", "data.image_size=8", "data.validation_size=4"]
FOLDER_OPTIONS += ["data.num_workers=0", "data.batch_size=8"]


def of_images(folder: Path, *options: str) -> list[str]:
    unmeasured = ["metric.at_end=none", "metric.every_n_validations=null"]
    return [*QUICK, *unmeasured, *FOLDER_OPTIONS, f"data.data_dir={folder}", *options]


def test_folders_of_images(image_folder: Path, tmp_path: Path) -> None:
    assert refusal(of_images(image_folder), tmp_path / "run") is None
    cases: list[tuple[list[str], str]] = [
        (["data.num_classes=3"], "`data.num_classes`"),
        (["data.channels=1"], "`data.channels`"),
        (["data.mean=null", "data.std=null"], "`data.mean`"),
        ([f"data.data_dir={tmp_path}/nowhere"], "ImageNet was not found"),
    ]
    for options, text in cases:
        assert text in (refusal(of_images(image_folder, *options), tmp_path / "run") or "")
    (image_folder / "val" / "dog").rename(image_folder / "val" / "wolf")
    assert "same class folders" in (refusal(of_images(image_folder), tmp_path / "run") or "")
    shutil.rmtree(image_folder / "train" / "dog")
    (image_folder / "train" / "dog").mkdir()
    assert "Found no valid file for the classes dog" in (refusal(of_images(image_folder), tmp_path / "run") or "")


def test_an_image_that_cannot_be_read(image_folder: Path, command: Command, tmp_path: Path) -> None:
    """It is named before training, and nothing is left behind."""
    broken = image_folder / "train" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:50])
    result = command(*of_images(image_folder), "hydra.run.dir=run")
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert f"Cannot read the image '{broken}'" in lines[0]
    assert lines[0].endswith("replace it or remove it.")
    assert "train loss" not in result.out
    assert not (tmp_path / "run").exists()

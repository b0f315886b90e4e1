"""The archive that commands of the results name holds CIFAR-10 in torchvision's order, or isn't written."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_fisher.datamodule import ImageDataModule
from tests.docs.pages import ROOT

spec = importlib.util.spec_from_file_location("cifar10_archive", ROOT / "results" / "cifar10_archive.py")
assert spec is not None
assert spec.loader is not None
archive = importlib.util.module_from_spec(spec)
spec.loader.exec_module(archive)


@pytest.fixture
def parts():
    """Two small data sets with the attributes of torchvision's."""
    random = np.random.default_rng(0)
    return [
        SimpleNamespace(data=random.integers(0, 256, (n, 32, 32, 3), np.uint8), targets=[i % 10 for i in range(n)])
        for n in (60, 20)
    ]


def test_the_archive_is_what_the_data_set_holds(tmp_path: Path, parts) -> None:
    train, test = parts
    found = archive.arrays(train, test)
    path = tmp_path / "cifar10.npz"
    archive.write(path, found, {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in found.items()})
    with np.load(path) as read:
        assert set(read) == set(archive.SHA256)
        assert (read["train_images"] == train.data).all()
        assert read["test_labels"].tolist() == test.targets
    data = ImageDataModule("arrays", path=str(path), num_classes=10, channels=3, image_size=32, validation_size=0)
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (60, 20)


def test_other_images_are_refused_and_nothing_is_written(tmp_path: Path, parts) -> None:
    with pytest.raises(
        ValueError, match=r"Expected CIFAR-10's train_images with SHA-256 47af8b.*, but got [0-9a-f]{64}\."
    ):
        archive.write(tmp_path / "cifar10.npz", archive.arrays(*parts))
    assert not list(tmp_path.iterdir())

"""CIFAR from torchvision's layout on disk, with small files in its format."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from torchvision import datasets

from lightning_fisher.data import load_cifar10, load_cifar100

RNG = np.random.default_rng(0)


def write(path, labels_key: str, labels: list[int]) -> np.ndarray:
    data = RNG.integers(256, size=(len(labels), 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({"data": data, labels_key: labels}))
    return data.reshape(-1, 3, 32, 32)


@pytest.fixture
def unchecked(monkeypatch):
    """The files here are not the published ones: skip their checksums."""
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *args: True)


def test_cifar10(tmp_path, unchecked):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    train = [write(folder / f"data_batch_{i}", "labels", [i, 9, 0]) for i in range(1, 6)]
    test = write(folder / "test_batch", "labels", [3, 4])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    splits = load_cifar10(data_dir=str(tmp_path))
    assert np.array_equal(splits.train.images.numpy(), np.concatenate(train))
    assert splits.train.labels.tolist() == [label for i in range(1, 6) for label in (i, 9, 0)]
    assert np.array_equal(splits.test.images.numpy(), test)
    assert splits.test.labels.tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"`train_labels` to be from 0 to 4"):
        load_cifar10(data_dir=str(tmp_path), num_classes=5)


def test_cifar100(tmp_path, unchecked):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    train = write(folder / "train", "fine_labels", [99, 0, 50])
    write(folder / "test", "fine_labels", [7])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    splits = load_cifar100(data_dir=str(tmp_path))
    assert np.array_equal(splits.train.images.numpy(), train)
    assert splits.train.labels.tolist() == [99, 0, 50]


@pytest.mark.parametrize(
    ("load", "name", "folder"),
    [(load_cifar10, "CIFAR-10", "cifar-10-batches-py"), (load_cifar100, "CIFAR-100", "cifar-100-python")],
)
def test_missing_data_say_what_to_do(tmp_path, load, name, folder):
    with pytest.raises(FileNotFoundError) as error:
        load(data_dir=str(tmp_path / "nowhere"))
    assert str(error.value) == (
        f"{name} was not found, or is incomplete, in {str(tmp_path / 'nowhere')!r}: "
        f"set data.data_dir to the folder that holds {folder}, or data.download=true to download it."
    )


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded to .* \(no network\): set data.data_dir"):
        load_cifar10(data_dir=str(tmp_path), download=True)

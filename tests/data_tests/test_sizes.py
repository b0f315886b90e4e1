"""How many images there are is read from headers, and what is asked for is checked against it."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from lightning_fisher.data.sources.files import archive_sizes, require_sizes, training_images, usual_validation_size


@pytest.fixture
def archive(tmp_path):
    def make(train: int, **more: np.ndarray) -> str:
        path = tmp_path / f"{train}.npz"
        images = {"train_images": np.zeros((train, 2, 2), np.uint8), "test_images": np.zeros((3, 2, 2), np.uint8)}
        np.savez_compressed(path, **images, train_labels=np.zeros(train, int), test_labels=np.zeros(3, int), **more)
        return str(path)

    return make


@pytest.mark.parametrize(("train", "usual"), [(7, 0), (300, 30), (9_999, 999), (10_000, 5_000), (60_000, 5_000)])
def test_the_usual_validation_size(train, usual, archive):
    assert usual_validation_size(archive(train)) == usual


def test_sizes(archive, tmp_path):
    path = archive(20, val_images=np.zeros((5, 2, 2), np.uint8), val_labels=np.zeros(5, int))
    assert archive_sizes(path) == {
        "train_images": 20, "train_labels": 20, "test_images": 3, "test_labels": 3, "val_images": 5, "val_labels": 5,
    }  # fmt: skip
    assert require_sizes("arrays", {"path": path, "validation_size": 5000}) == 20  # of images of its own
    assert require_sizes("digits", {"validation_size": 200, "confusion_size": 100}) == 700
    assert require_sizes("imagenet", {"validation_size": 200}) is None
    assert training_images("arrays", {"path": str(tmp_path / "none.npz")}) is None
    broken = tmp_path / "broken.npz"
    with zipfile.ZipFile(broken, "w") as file:
        file.writestr("train_images.npy", b"no array")
    assert archive_sizes(str(broken)) == {}
    assert usual_validation_size(str(broken)) == usual_validation_size(None) == 5_000


def test_sizes_that_do_not_fit(archive):
    with pytest.raises(ValueError, match=r"`validation_size` to be from 0 to 19 .*, but got 20"):
        require_sizes("arrays", {"path": archive(20), "validation_size": 20})
    with pytest.raises(ValueError, match=r"`train_size` to be null or from 1 to 800"):
        require_sizes("digits", {"validation_size": 200, "train_size": 801})

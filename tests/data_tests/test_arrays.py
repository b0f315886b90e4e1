"""Bring your own `.npz`: what is read, and the one line for what isn't."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_fisher.data import load_arrays
from lightning_fisher.datamodule import ImageDataModule

RNG = np.random.default_rng(0)


def arrays(**changes) -> dict[str, np.ndarray]:
    good = {
        "train_images": RNG.integers(256, size=(6, 4, 5, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "test_images": RNG.integers(256, size=(3, 4, 5, 3), dtype=np.uint8),
        "test_labels": np.array([0, 1, 2]),
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


def load(tmp_path, contents, **options):
    path = tmp_path / "images.npz"
    np.savez(path, **contents)
    return load_arrays(**({"path": str(path), "num_classes": 3, "channels": 3, "image_size": (4, 5)} | options))


def test_images_and_labels_are_read(tmp_path):
    contents = arrays()
    train, test, validation = load(tmp_path, contents)
    assert validation is None
    for source, split in ((train, "train"), (test, "test")):
        assert source.images.dtype == torch.uint8
        assert source.labels.dtype == torch.int64
        assert source.images.is_contiguous()
        assert np.array_equal(source.images.numpy(), contents[f"{split}_images"].transpose(0, 3, 1, 2))
        assert np.array_equal(source.labels.numpy(), contents[f"{split}_labels"])


def test_images_of_one_channel_need_no_axis(tmp_path):
    gray = {key: arrays()[key] for key in ("train_images", "test_images")}
    gray = {key: value[..., 0] for key, value in gray.items()}
    train = load(tmp_path, arrays(**gray), channels=1).train
    assert train.images.shape == (6, 1, 4, 5)
    assert np.array_equal(train.images[:, 0].numpy(), gray["train_images"])


def test_archives_like_those_of_medmnist(tmp_path):
    contents = arrays()
    for split in ("train", "test"):
        contents[f"{split}_labels"] = contents[f"{split}_labels"].astype(np.uint8)[:, None]
    contents["val_images"] = RNG.integers(256, size=(2, 4, 5, 3), dtype=np.uint8)
    contents["val_labels"] = np.array([[2], [1]], dtype=np.uint8)
    contents["class_names"] = np.array(["cat", "dog", "eel"], dtype=object)  # a pickle inside, which is left alone
    train, test, validation = load(tmp_path, contents)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert test.labels.tolist() == [0, 1, 2]
    assert validation.labels.tolist() == [2, 1]
    assert np.array_equal(validation.images.numpy(), contents["val_images"].transpose(0, 3, 1, 2))
    del contents["val_labels"]
    with pytest.raises(ValueError, match=r"Expected val_images and val_labels in .*, or neither, but got val_images"):
        load(tmp_path, contents)


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (3, 3), (5000, 5)])
def test_own_validation_images_take_none_of_the_training_images(tmp_path, size, expected):
    contents = arrays(val_images=np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(5, 4, 5, 3))
    contents["val_labels"] = np.array([0, 1, 2, 0, 1])
    np.savez(tmp_path / "images.npz", **contents)
    options = {"num_classes": 3, "channels": 3, "image_size": (4, 5), "path": str(tmp_path / "images.npz")}
    data = ImageDataModule("arrays", validation_size=size, **options)
    data.setup()
    assert len(data.train_set) == 6
    assert len(data.validation_set) == expected
    chosen, labels = data.validation_set.indices.tolist(), data.validation_set.labels.tolist()
    assert len(set(chosen)) == expected
    assert labels == contents["val_labels"][np.array(chosen, dtype=int)].tolist()
    if expected:
        image, _ = data.validation_set[0]
        assert np.array_equal(image.numpy(), contents["val_images"][chosen[0]].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="`train_size` to be null or from 1 to 6"):
        ImageDataModule("arrays", validation_size=size, train_size=7, **options).setup()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"test_labels": None},
            {},
            "to be named train_images, .*, test_labels, but got train_images, train_labels, test_images",
        ),
        ({"test_labels": None, "x_train": np.zeros(3)}, {}, "to be named train_images, .* x_train"),
        ({"train_labels": np.eye(6, dtype=int)}, {}, r"`train_labels` to be integers of shape \[6\], but .* \[6, 6\]"),
        (
            {"val_images": np.zeros((2, 4, 5, 3), np.uint8), "val_labels": np.array([0, 3])},
            {},
            "`val_labels` to be from 0 to 2",
        ),
        ({"train_labels": np.array([0, 1, 2, 0, 1, 3])}, {}, "`train_labels` to be from 0 to 2 .* from 0 to 3"),
        ({"test_labels": np.array([0, -1, 2])}, {}, "`test_labels` to be from 0 to 2 .* from -1 to 2"),
        (
            {"test_labels": np.array([0, 1])},
            {},
            r"`test_labels` to be integers of shape \[3\], but .* \[2\]",
        ),
        ({"test_labels": np.array([0.0, 1.0, 2.0])}, {}, "`test_labels` to be integers .* but got float64"),
        ({"test_images": np.zeros((3, 4, 5, 3))}, {}, "`test_images` to be uint8 .* but got float64"),
        (
            {"test_images": np.zeros((3, 3, 4, 5), dtype=np.uint8)},
            {},
            r"`test_images` to be uint8 of shape \[N, 4, 5, 3\] .* but got uint8 of shape \[3, 3, 4, 5\]",
        ),
        ({}, {"image_size": 32}, r"\[N, 32, 32, 3\]"),
        ({}, {"channels": 1}, r"\[N, 4, 5, 1\]"),
        ({"train_images": np.zeros((0, 4, 5, 3), dtype=np.uint8)}, {}, r"but got uint8 of shape \[0, 4, 5, 3\]"),
        ({"train_labels": np.array([None] * 6)}, {}, "archive of plain arrays, but .* cannot be read"),
    ],
)
def test_other_contents_are_refused_in_one_line(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, arrays(**changes), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04broken"])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"archive of plain arrays, but .*images\.npz' cannot be read") as error:
        load_arrays(path=str(path), num_classes=3, channels=3, image_size=4)
    assert "\n" not in str(error.value)


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros(3))
    with pytest.raises(ValueError, match="archive of plain arrays"):
        load_arrays(path=str(tmp_path / "images.npy"), num_classes=3, channels=3, image_size=4)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`path` to be an .npz file with .*, but there is no file '.*none\.npz'"
    ):
        load_arrays(path=str(tmp_path / "none.npz"), num_classes=3, channels=3, image_size=4)
    with pytest.raises(ValueError, match=r"set data\.path=FILE\.npz"):
        load_arrays(num_classes=3, channels=3, image_size=4)

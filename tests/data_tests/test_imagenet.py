"""Folders of images at 128x128."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_fisher.data import load_imagenet

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 3), ("val", 1)):
        for name in ("n01", "n02"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(256, size=(100 + 40 * i, 200, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def load(folder, **options):
    return load_imagenet(**({"data_dir": str(folder), "num_classes": 2, "image_size": 32} | options))


def test_images_are_scaled_and_cut_out(folder):
    train, test, *_ = load(folder)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 1]
    images = train.fetch(torch.tensor([4, 0]))
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.uint8
    # By hand: the shorter side, 140 of 140 x 200, becomes 32; the middle 32 of 45 columns stay.
    with Image.open(folder / "train" / "n02" / "1.png") as file:
        scaled = np.asarray(file.resize((45, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(images[0].numpy(), scaled[:, 6:38].transpose(2, 0, 1))
    assert torch.equal(images, train.fetch(torch.tensor([4, 0])))


def test_random_crops_differ_each_time(folder):
    torch.manual_seed(0)
    train = load(folder).train.with_random_crops()
    one, other = train.fetch(torch.tensor([0])), train.fetch(torch.tensor([0]))
    assert one.shape == (1, 3, 32, 32)
    assert not torch.equal(one, other)


def test_the_published_size_is_the_default(folder):
    assert load_imagenet(data_dir=str(folder), num_classes=2).train.fetch(torch.tensor([0])).shape == (1, 3, 128, 128)


def test_what_is_missing_or_unfit_is_said_in_one_line(folder, tmp_path):
    for data_dir in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"set data\.data_dir to a folder with train/CLASS/ and") as error:
            load(data_dir)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"`num_classes` to be the number of class folders .*, 2, but got 1000"):
        load(folder, num_classes=1000)
    with pytest.raises(ValueError, match="`channels` to be 3 for `imagenet`, but got 1"):
        load(folder, channels=1)


def test_other_classes_in_val_are_refused(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / name / "0.png")
    with pytest.raises(ValueError, match="the same class folders in train and val"):
        load(tmp_path, num_classes=1)

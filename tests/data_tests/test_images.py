"""Batches, padding for several processes, and normalization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_fisher.data import LabeledImages, Normalization, NormalizedImages, channel_statistics
from lightning_fisher.data.images import IGNORED_LABEL, MemoryImages, keep_batch


@pytest.fixture
def source() -> MemoryImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (11, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return MemoryImages(images, torch.arange(11))


def test_whole_batches_are_the_single_samples(source):
    images = LabeledImages(source, torch.tensor([7, 2, 9, 4]), torch.tensor([0, 1, 2, 3]))
    batches = list(DataLoader(images, batch_size=3, collate_fn=keep_batch))
    assert [len(labels) for _, labels in batches] == [3, 1]
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(pixels, source.images[[7, 2, 9, 4]])
    assert pixels.dtype == torch.uint8
    for i in range(4):
        image, label = images[i]
        assert torch.equal(image, pixels[i])
        assert label == labels[i] == i
    with pytest.raises(IndexError):
        images[4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 16])
def test_every_sample_counts_once_over_all_ranks(source, world_size):
    padded = LabeledImages.all_of(source).padded_to_multiple_of(world_size)
    seen, batches = [], []
    for rank in range(world_size):
        sampler = DistributedSampler(padded, num_replicas=world_size, rank=rank, shuffle=False)
        loader = DataLoader(padded, batch_size=2, sampler=sampler, collate_fn=keep_batch)
        labels = [labels for _, labels in loader]
        batches.append(len(labels))
        seen += torch.cat(labels).tolist()
    assert sorted(label for label in seen if label != IGNORED_LABEL) == list(range(11))
    assert len(set(batches)) == 1
    assert len(LabeledImages.all_of(source)) == 11


def test_statistics_are_those_of_numpy(source):
    mean, std = channel_statistics(source.images)
    values = source.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalized_images_have_mean_0_and_deviation_1(source, dtype):
    normalization = Normalization(*map(tuple, channel_statistics(source.images)))
    images = normalization(source.images, dtype)
    assert images.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert images.mean(dim=(0, 2, 3)).abs().max() < tolerance
    assert (images.var(dim=(0, 2, 3), correction=0) - 1).abs().max() < tolerance


def test_normalization_is_its_formula(source):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    expected = (source.images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(Normalization(mean, std)(source.images), expected)


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), (1.0,)), ((0.5,), (0.0,))])
def test_unfit_statistics_are_refused(mean, std):
    with pytest.raises(ValueError, match="`mean` and `std` to be one number a channel, `std` positive"):
        Normalization(mean, std)


def test_normalized_images_are_single_float_samples(source):
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    dataset = NormalizedImages(LabeledImages(source, torch.tensor([3, 1]), torch.tensor([5, 6])), normalization)
    image, label = dataset[1]
    assert len(dataset) == 2
    assert image.shape == (3, 4, 5)
    assert torch.equal(image, normalization(source.images)[1])
    assert label == 6
    images, labels = next(iter(DataLoader(dataset, batch_size=2)))  # default collation
    assert images.shape == (2, 3, 4, 5)
    assert labels.tolist() == [5, 6]

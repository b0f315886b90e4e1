"""The batched augmentation against a loop over single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_fisher.data import AUGMENTATIONS, crop_and_flip
from lightning_fisher.data.randomness import stream


def crop_one(image: np.ndarray, top: int, left: int, flip: bool, padding: int) -> np.ndarray:
    """[C, H, W]: pad, cut out, mirror, element by element."""
    height, width = image.shape[1:]
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = top + i - padding, left + j - padding
            if 0 <= row < height and 0 <= column < width:
                out[:, i, width - 1 - j if flip else j] = image[:, row, column]
    return out


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_is_the_loop_over_samples(padding):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 7, 9, generator=generator, dtype=torch.float64)
    top, left = torch.randint(2 * padding + 1, (2, 40), generator=generator)
    flip = torch.rand(40, generator=generator) < 0.5
    expected = [
        crop_one(image.numpy(), int(t), int(x), bool(f), padding)
        for image, t, x, f in zip(images, top, left, flip, strict=True)
    ]
    result = crop_and_flip(images, top, left, flip, padding=padding)
    assert torch.equal(result, torch.from_numpy(np.stack(expected)))


def position_image(batch: int, size: int) -> torch.Tensor:
    """Every pixel its own positive number, the same in every image."""
    return (1.0 + torch.arange(size * size)).view(1, 1, size, size).repeat(batch, 1, 1, 1)


@pytest.mark.parametrize(("name", "padding", "flips"), [("no-aug", 0, 1), ("flip-only", 0, 2), ("1-crop-f", 1, 2)])
def test_each_scheme_draws_every_crop_and_flip(name, padding, flips):
    images = position_image(4000, 5)
    augmented = AUGMENTATIONS[name](images, stream(0, "test"))
    kinds = {tuple(image.flatten().tolist()) for image in augmented}
    assert len(kinds) == (2 * padding + 1) ** 2 * flips
    share_unchanged = (augmented == images).all(dim=(1, 2, 3)).double().mean().item()
    expected = 1 / len(kinds)
    assert share_unchanged == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 4000) ** 0.5)


def test_four_pixels_are_padded_in_4_crop_f():
    augmented = AUGMENTATIONS["4-crop-f"](position_image(2000, 8), stream(0, "test"))
    empty_rows = (augmented == 0).all(dim=3).sum(dim=(1, 2))
    assert sorted(set(empty_rows.tolist())) == [0, 1, 2, 3, 4]
    assert AUGMENTATIONS["4-crop-f"].padding == 4


def test_the_draws_follow_from_the_generator():
    images = torch.randn(16, 3, 8, 8)
    augment = AUGMENTATIONS["4-crop-f"]
    state = torch.get_rng_state()
    first, again, other = (augment(images, stream(0, "test", step)) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_aug_changes_nothing():
    images = torch.randn(4, 1, 8, 8)
    assert AUGMENTATIONS["no-aug"](images, stream(0, "test")) is images

"""Random crops and flips of a whole batch at once, on the batch's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, padding: int) -> Tensor:
    """Pad every image by zeros, crop each at its own offset back to its size, and mirror some of them.

    With p = `padding` and images that are normalized, the border has the color of the mean:
    `out[b, c, i, j] = padded[b, c, top_b + i, left_b + j']` with `j' = W - 1 - j` where `flip_b`, else `j`.

    Args:
        images: `[B, C, H, W]` of any dtype.
        top: int64 `[B]`, the first row of each crop in the padded image, 0 to 2p.
        left: int64 `[B]`, the first column, 0 to 2p.
        flip: bool `[B]`, which images are mirrored left to right.
        padding: p, the rows and columns added on each side.

    Returns:
        `[B, C, H, W]`, one gather over the batch.
    """
    batch, channels, height, width = images.shape
    device = images.device
    rows = top[:, None] + torch.arange(height, device=device)  # [B, H]
    columns = torch.arange(width, device=device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)  # [B, W]
    padded = F.pad(images, (padding,) * 4) if padding else images
    return padded[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


@dataclass(frozen=True)
class Augmentation:
    """A random crop after padding, and a mirroring with probability 1/2, for each image on its own.

    Args:
        padding: rows and columns of zeros added on each side before the crop; 0 for no crop.
        flip: whether images are mirrored left to right.
    """

    padding: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images `[B, C, H, W]`.

        Args:
            images: the normalized images.
            generator: a CPU generator, so that every device draws the same crops.

        Returns:
            `[B, C, H, W]`; `images` itself where there is nothing to do.
        """
        if self.padding == 0 and not self.flip:
            return images
        batch = len(images)
        offsets = torch.randint(2 * self.padding + 1, (2, batch), generator=generator)
        mirrored = torch.randint(2, (1, batch), generator=generator) * int(self.flip)
        top, left, flip = torch.cat([offsets, mirrored]).to(images.device, non_blocking=True)
        return crop_and_flip(images, top, left, flip.bool(), padding=self.padding)


AUGMENTATIONS: dict[str, Augmentation] = {
    "no-aug": Augmentation(padding=0, flip=False),
    "flip-only": Augmentation(padding=0, flip=True),
    "1-crop-f": Augmentation(padding=1, flip=True),
    "4-crop-f": Augmentation(padding=4, flip=True),
}
"""The four schemes of the paper's Scenario II, by its names for them."""

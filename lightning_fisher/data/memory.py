"""Images that sit in memory as uint8 tensors, checked on the way in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """Images that sit in memory.

    Args:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`.
    """

    images: Tensor
    labels: Tensor

    def fetch(self, indices: Tensor) -> Tensor:
        """The images of these indices `[B]` as uint8 `[B, C, H, W]`."""
        return self.images[indices]


def memory_images(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    split: str,
    num_classes: int,
    channels: int,
    image_size: int | Sequence[int],
) -> MemoryImages:
    """Check arrays and bring them to the layout of the networks.

    Args:
        images: uint8 `[N, H, W, C]`, or `[N, H, W]` for one channel.
        labels: whole numbers `[N]` or `[N, 1]` from 0 to `num_classes - 1`.
        split: `"train"`, `"val"` or `"test"`, for the messages.
        num_classes: number of classes K.
        channels: C.
        image_size: H and W, or one number for both.

    Returns:
        The images as `[N, C, H, W]`.

    Raises:
        ValueError: if dtype, shape or labels are not as described.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels) or len(images) == 0:
        raise ValueError(
            f"Expected `{split}_images` to be uint8 of shape [N, {height}, {width}, {channels}] (`image_size` and "
            f"`channels` of the data configuration), but got {images.dtype} of shape {list(images.shape)}."
        )
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected `{split}_labels` to be integers of shape [{len(images)}], "
            f"but got {labels.dtype} of shape {list(labels.shape)}."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Expected `{split}_labels` to be from 0 to {num_classes - 1} (`num_classes` is {num_classes}), "
            f"but got values from {labels.min()} to {labels.max()}."
        )
    return MemoryImages(
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels.astype(np.int64)),
    )

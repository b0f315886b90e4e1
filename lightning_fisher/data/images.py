"""Labeled images: sources, in memory or elsewhere, and data sets of them that are fetched by whole batches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_fisher.data.normalization import Normalization

IGNORED_LABEL = -100
"""The label of a sample that only fills up a batch: cross-entropy and the evaluation leave it out."""


class ImageSource(Protocol):
    """Where images come from: memory or files."""

    @property
    def labels(self) -> Tensor:
        """The labels, int64 `[N]`."""
        ...

    def fetch(self, indices: Tensor) -> Tensor:
        """The images of these indices `[B]` as uint8 `[B, C, H, W]`."""
        ...


class SourceSplits(NamedTuple):
    """The official training and test images of a data set, and its validation images if it has some of its own."""

    train: ImageSource
    test: ImageSource
    validation: ImageSource | None = None


@dataclass(frozen=True, eq=False)
class LabeledImages(Dataset[tuple[Tensor, Tensor]]):
    """A selection of a source's images, with labels of its own.

    A `DataLoader` fetches whole batches from it (`__getitems__`, with :func:`keep_batch` as its `collate_fn`).

    Args:
        source: where the images come from.
        indices: the selected images, int64 `[n]`.
        labels: their labels, int64 `[n]`.
    """

    source: ImageSource
    indices: Tensor
    labels: Tensor

    @classmethod
    def all_of(cls, source: ImageSource) -> LabeledImages:
        """Every image of a source with the source's labels."""
        return cls(source, torch.arange(len(source.labels)), source.labels)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.source.fetch(self.indices[i].view(1))[0], self.labels[i]

    def __getitems__(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(positions)
        return self.source.fetch(self.indices[chosen]), self.labels[chosen]

    def padded_to_multiple_of(self, world_size: int) -> LabeledImages:
        """Append repeated images with the label `IGNORED_LABEL` until the length is a multiple of `world_size`.

        Then every rank of a distributed evaluation gets equally many batches, and still each sample counts once.
        """
        missing = -len(self) % world_size
        if missing == 0:
            return self
        return LabeledImages(
            self.source,
            torch.cat([self.indices, self.indices[:1].expand(missing)]),
            torch.cat([self.labels, torch.full((missing,), IGNORED_LABEL)]),
        )


def __getattr__(name: str) -> Any:
    if name == "LabelledImages":  # the name of 0.1
        warnings.warn("`LabelledImages` is called `LabeledImages`.", DeprecationWarning, stacklevel=3)
        return LabeledImages
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def keep_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """The `collate_fn` of a data set that is fetched by whole batches."""
    return batch


class NormalizedImages(Dataset[tuple[Tensor, Tensor]]):
    """Single images as the network sees them in evaluation: normalized, not augmented, on the CPU.

    Args:
        images: the uint8 images and labels.
        normalization: the mean and standard deviation of the channels.
    """

    def __init__(self, images: LabeledImages, normalization: Normalization) -> None:
        self.images = images
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """The image `[C, H, W]`, float32, and its label, int64 scalar."""
        image, label = self.images[i]
        return self.normalization(image[None])[0], label


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

"""CIFAR-10 and CIFAR-100, read from torchvision's layout on disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_fisher.data.files import CIFAR_FOLDERS, cifar_not_found
from lightning_fisher.data.images import SourceSplits, memory_images


def _load_cifar(
    name: str, num_classes: int, channels: int, image_size: int | Sequence[int], data_dir: str, download: bool
) -> SourceSplits:
    from torchvision import datasets

    dataset_class = {"CIFAR-10": datasets.CIFAR10, "CIFAR-100": datasets.CIFAR100}[name]
    sources = []
    for split in ("train", "test"):
        try:
            part = dataset_class(str(data_dir), train=split == "train", download=download)
        except (OSError, RuntimeError) as error:
            if not download:
                raise cifar_not_found(name, data_dir) from error
            raise FileNotFoundError(
                f"{name} could not be downloaded to {str(data_dir)!r} ({error}): set data.data_dir to the folder that "
                f"holds {CIFAR_FOLDERS[name]}."
            ) from error
        sources.append(
            memory_images(
                part.data,
                np.asarray(part.targets),
                split=split,
                num_classes=num_classes,
                channels=channels,
                image_size=image_size,
            )
        )
    return SourceSplits(*sources)


def load_cifar10(
    *,
    num_classes: int = 10,
    channels: int = 3,
    image_size: int | Sequence[int] = 32,
    data_dir: str = "data",
    download: bool = False,
) -> SourceSplits:
    """Read CIFAR-10: 50,000 training and 10,000 test images, 32x32, 3 channels, 10 classes.

    Args:
        num_classes: checked against the labels.
        channels: checked against the images.
        image_size: checked against the images.
        data_dir: the folder that holds `cifar-10-batches-py`.
        download: whether to download it there first where it is missing.

    Returns:
        The training and the test images.

    Raises:
        FileNotFoundError: if the data are not there, or cannot be downloaded.
    """
    return _load_cifar("CIFAR-10", num_classes, channels, image_size, data_dir, download)


def load_cifar100(
    *,
    num_classes: int = 100,
    channels: int = 3,
    image_size: int | Sequence[int] = 32,
    data_dir: str = "data",
    download: bool = False,
) -> SourceSplits:
    """Read CIFAR-100: as :func:`load_cifar10`, with 100 classes, from the folder `cifar-100-python`.

    Args:
        num_classes: checked against the labels.
        channels: checked against the images.
        image_size: checked against the images.
        data_dir: the folder that holds `cifar-100-python`.
        download: whether to download it there first where it is missing.

    Returns:
        The training and the test images.

    Raises:
        FileNotFoundError: if the data are not there, or cannot be downloaded.
    """
    return _load_cifar("CIFAR-100", num_classes, channels, image_size, data_dir, download)

"""CIFAR-10 and CIFAR-100, read from torchvision's layout on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_fisher.data.images import SourceSplits, memory_images
from lightning_fisher.data.sources.download import fetch_archive, folder_for, one_at_a_time
from lightning_fisher.data.sources.files import cifar_not_found


def _is_complete(dataset_class: Any, data_dir: str) -> bool:
    """Whether every file is there with its published checksum."""
    from torchvision.datasets import cifar

    files = [*dataset_class.train_list, *dataset_class.test_list]
    files.append((dataset_class.meta["filename"], dataset_class.meta["md5"]))
    folder = Path(data_dir) / dataset_class.base_folder
    return all(cifar.check_integrity(str(folder / file), md5) for file, md5 in files)


def _fetch(name: str, dataset_class: Any, data_dir: str) -> None:
    """Download and unpack what is missing, in one process of this machine."""
    from torchvision.datasets.utils import extract_archive

    if _is_complete(dataset_class, data_dir):
        return
    root = Path(data_dir)
    lock = root / f".{dataset_class.base_folder}.lock"
    with folder_for(root, lock), one_at_a_time(lock, f"fetches {name} to {str(data_dir)!r}"):
        if _is_complete(dataset_class, data_dir):
            return
        archive = root / dataset_class.filename
        announcement = (
            f"{name} is not in {str(data_dir)!r}: fetching it from {dataset_class.url} to there "
            "(data.download=false turns this off)."
        )
        fetch_archive(dataset_class.url, archive, dataset_class.tgz_md5, announcement)
        extract_archive(str(archive), str(root))


def _load_cifar(
    name: str, num_classes: int, channels: int, image_size: int | Sequence[int], data_dir: str, download: bool
) -> SourceSplits:
    from torchvision import datasets

    dataset_class = {"CIFAR-10": datasets.CIFAR10, "CIFAR-100": datasets.CIFAR100}[name]
    expected: dict[str, Any] = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    folder = f"the folder that holds {dataset_class.base_folder}"
    if download:
        # What doesn't fit is refused before anything is fetched.
        classes = {"CIFAR-10": 10, "CIFAR-100": 100}[name]
        memory_images(np.zeros((2, 32, 32, 3), np.uint8), np.array([0, classes - 1]), split="train", **expected)
        try:
            _fetch(name, dataset_class, data_dir)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{name} is not in {str(data_dir)!r} and could not be fetched from {dataset_class.url} ({error}): "
                f"set data.data_dir to {folder}, or try again with a network."
            ) from error
    sources = []
    for split in ("train", "test"):
        try:
            part = dataset_class(str(data_dir), train=split == "train")
        except (OSError, RuntimeError) as error:
            raise cifar_not_found(name, data_dir) from error
        sources.append(memory_images(part.data, np.asarray(part.targets), split=split, **expected))
    return SourceSplits(*sources)


def load_cifar10(
    *,
    num_classes: int = 10,
    channels: int = 3,
    image_size: int | Sequence[int] = 32,
    data_dir: str = "data",
    download: bool = True,
) -> SourceSplits:
    """Read CIFAR-10: 50,000 training and 10,000 test images, 32x32, 3 channels, 10 classes.

    Args:
        num_classes: checked against the labels.
        channels: checked against the images.
        image_size: checked against the images.
        data_dir: the folder that holds `cifar-10-batches-py`.
        download: whether to fetch it to there first where it is missing or incomplete (about 170 MB from the authors'
            page; checksums are verified, a half-written archive is continued, one process at a time).

    Returns:
        The training and the test images.

    Raises:
        FileNotFoundError: if the data are not there, and cannot be fetched or are not to be.
    """
    return _load_cifar("CIFAR-10", num_classes, channels, image_size, data_dir, download)


def load_cifar100(
    *,
    num_classes: int = 100,
    channels: int = 3,
    image_size: int | Sequence[int] = 32,
    data_dir: str = "data",
    download: bool = True,
) -> SourceSplits:
    """Read CIFAR-100: as :func:`load_cifar10`, with 100 classes, from the folder `cifar-100-python`.

    Args:
        num_classes: checked against the labels.
        channels: checked against the images.
        image_size: checked against the images.
        data_dir: the folder that holds `cifar-100-python`.
        download: whether to fetch it to there first where it is missing or incomplete (about 170 MB from the authors'
            page; checksums are verified, a half-written archive is continued, one process at a time).

    Returns:
        The training and the test images.

    Raises:
        FileNotFoundError: if the data are not there, and cannot be fetched or are not to be.
    """
    return _load_cifar("CIFAR-100", num_classes, channels, image_size, data_dir, download)

"""Labeled images of one's own, in memory: an `.npz`, a folder of class folders, or scikit-learn's digits."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lightning_fisher.data.images import MemoryImages, memory_images
from lightning_fisher.data.sources.digits import load_digits
from lightning_fisher.data.sources.image_files import check_image_files
from lightning_fisher.data.sources.imagenet import FolderImages, image_folder


@dataclass(frozen=True)
class OwnImages:
    """Images with labels.

    Args:
        source: the images and their labels.
        num_classes: K.
        class_names: the names of the classes; None where they have numbers only.
        files: the names of the files; None where there are none.
    """

    source: MemoryImages
    num_classes: int
    class_names: Sequence[str] | None = None
    files: Sequence[str] | None = None


def read_images(data: str, image_size: int = 32) -> OwnImages:
    """Read images.

    Args:
        data: ``"digits"``; an `.npz` with uint8 `images` ``[N, H, W]`` or ``[N, H, W, C]`` and `labels`, whole numbers
            or names of classes, or `train_images` and `train_labels`; or a folder with a folder of image files for each
            class (`train/` in it, if there is one).
        image_size: H = W that images of files are scaled and cut to.

    Returns:
        All of them, in memory.

    Raises:
        ValueError: if there is nothing of this kind, in one line.
    """
    if data == "digits":
        train, test, _ = load_digits()
        assert isinstance(train, MemoryImages)
        assert isinstance(test, MemoryImages)
        both = MemoryImages(torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels]))
        return OwnImages(both, 10)
    path = Path(data)
    if path.is_dir():
        return _of_folder(path / "train" if (path / "train").is_dir() else path, image_size)
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"Expected `digits`, an .npz archive, or a folder with a folder of images for each class, but got {data!r}."
        )
    with np.load(path, allow_pickle=False) as archive:
        names = next((n for n in (("images", "labels"), ("train_images", "train_labels")) if {*n} <= {*archive}), None)
        if names is None:
            raise ValueError(
                f"Expected the arrays in {data!r} to be named images, labels or train_images, train_labels, but got "
                f"{', '.join(archive)}."
            )
        images, labels = (archive[name] for name in names)
    if images.ndim not in (3, 4):
        raise ValueError(f"Expected `{names[0]}` to be [N, H, W] or [N, H, W, C], but got shape {list(images.shape)}.")
    class_names = None
    if labels.dtype.kind == "U":  # names
        class_names, labels = np.unique(labels, return_inverse=True)
    if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
        words = "whole numbers, or names of classes"
        raise ValueError(f"Expected `{names[1]}` to be {words}, but got {labels.dtype} of {list(labels.shape)}.")
    classes = int(labels.max()) + 1
    if classes > max(labels.size, 2**8):
        raise ValueError(f"Expected `{names[1]}` to be numbers of classes from 0, but got {labels.max()} among them.")
    height, width, channels = (*images.shape[1:], 1)[:3]
    size = (height, width)
    checked = memory_images(images, labels, split="train", num_classes=classes, channels=channels, image_size=size)
    return OwnImages(checked, classes, None if class_names is None else [str(name) for name in class_names])


def _of_folder(path: Path, image_size: int) -> OwnImages:
    try:
        folder = image_folder(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"Expected {str(path)!r} to hold a folder of images for each class ({str(error).splitlines()[0].strip()})."
        ) from error
    files = [file for file, _ in folder.samples]
    check_image_files(files)
    labels = torch.tensor(folder.targets)
    images = FolderImages(files, labels, image_size).fetch(torch.arange(len(files)))
    return OwnImages(MemoryImages(images, labels), len(folder.classes), folder.classes, files)

"""Data sets, their splits, augmentation, confusion set and evaluation order."""

from __future__ import annotations

from collections.abc import Callable

from lightning_fisher.data.arrays import load_arrays
from lightning_fisher.data.augmentation import AUGMENTATIONS, Augmentation, crop_and_flip
from lightning_fisher.data.cifar import load_cifar10, load_cifar100
from lightning_fisher.data.digits import load_digits
from lightning_fisher.data.imagenet import load_imagenet
from lightning_fisher.data.images import ImageSource, LabeledImages, NormalizedImages, SourceSplits
from lightning_fisher.data.normalization import Normalization, channel_statistics
from lightning_fisher.data.partition import TrainingPartition, partition_training_set

SOURCES: dict[str, Callable[..., SourceSplits]] = {
    "arrays": load_arrays,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits,
    "imagenet": load_imagenet,
}
"""The data sets by name: functions from `num_classes`, `channels`, `image_size` and options of their own."""

LabelledImages = LabeledImages  # the name until 0.2

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Augmentation",
    "ImageSource",
    "LabeledImages",
    "Normalization",
    "NormalizedImages",
    "SourceSplits",
    "TrainingPartition",
    "channel_statistics",
    "crop_and_flip",
    "load_arrays",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_imagenet",
    "partition_training_set",
]

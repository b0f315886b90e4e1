"""Data sets, their splits, augmentation, confusion set and evaluation order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.data.augmentation import AUGMENTATIONS, Augmentation, crop_and_flip
    from lightning_fisher.data.images import ImageSource, LabeledImages, LabelledImages, NormalizedImages, SourceSplits
    from lightning_fisher.data.normalization import Normalization, channel_statistics
    from lightning_fisher.data.partition import TrainingPartition, partition_training_set
    from lightning_fisher.data.sources.arrays import load_arrays
    from lightning_fisher.data.sources.cifar import load_cifar10, load_cifar100
    from lightning_fisher.data.sources.digits import load_digits
    from lightning_fisher.data.sources.imagenet import load_imagenet
    from lightning_fisher.data.sources.registry import SOURCES

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "Augmentation",
    "ImageSource",
    "LabeledImages",
    "LabelledImages",
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

__getattr__, __dir__ = lazy_exports(__name__)

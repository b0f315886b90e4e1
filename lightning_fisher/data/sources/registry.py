"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from lightning_fisher.data.images import SourceSplits
from lightning_fisher.data.sources.arrays import load_arrays
from lightning_fisher.data.sources.cifar import load_cifar10, load_cifar100
from lightning_fisher.data.sources.digits import load_digits
from lightning_fisher.data.sources.imagenet import load_imagenet

SOURCES: dict[str, Callable[..., SourceSplits]] = {
    "arrays": load_arrays,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits,
    "imagenet": load_imagenet,
}
"""The data sets by name: functions from `num_classes`, `channels`, `image_size` and options of their own."""

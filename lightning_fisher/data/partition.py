"""Which of the official training images a run trains on, validates on, and with which labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fisher.data.randomness import stream
from lightning_fisher.data.sources.files import check_sizes


class TrainingPartition(NamedTuple):
    """Disjoint parts of the official training set: indices into it, and the labels to train with.

    `indices` and `labels` of one part have equal length.
    """

    clean_indices: Tensor
    clean_labels: Tensor
    confusion_indices: Tensor
    confusion_labels: Tensor
    validation_indices: Tensor


def with_symmetric_noise(labels: Tensor, fraction: float, num_classes: int, generator: torch.Generator) -> Tensor:
    """Replace a fraction of the labels by wrong ones.

    Symmetric noise as in Patrini et al. 2017 and Han et al. 2018: a changed label becomes each of the K - 1 *other*
    classes with probability 1 / (K - 1). Exactly `round(fraction n)` labels change.

    Args:
        labels: int64 `[n]`, left as they are.
        fraction: the share to change, 0 to 1.
        num_classes: K.
        generator: the random stream.

    Returns:
        The new labels, int64 `[n]`.
    """
    noisy = labels.clone()
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    shift = torch.randint(1, num_classes, chosen.shape, generator=generator)
    noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy


def partition_training_set(
    labels: Tensor,
    num_classes: int,
    *,
    validation_size: int = 0,
    validation_seed: int = 0,
    train_size: int | None = None,
    confusion_size: int = 0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> TrainingPartition:
    """Divide the official training set.

    1. `validation_size` random images, chosen by `validation_seed` alone, are set aside.
    2. Of the rest, `train_size` random images chosen by `seed` are the clean set: what the metrics are computed on.
    3. `confusion_size` further ones, chosen by `seed` too, get uniformly random labels (the right one among them):
       the confusion set of the paper's Scenario I. With one seed a smaller confusion set is part of a larger one,
       and the clean set is the same for all of them.
    4. `label_noise` of the clean labels are replaced (:func:`with_symmetric_noise`).

    Args:
        labels: the official labels, int64 `[N]`.
        num_classes: number of classes K.
        validation_size: number of validation images.
        validation_seed: seed of their choice.
        train_size: number of clean images; `None` takes all that validation and confusion leave.
        confusion_size: number of images with random labels.
        label_noise: the fraction of clean labels that is changed.
        seed: the run's seed.

    Returns:
        The parts; indices of the clean and the validation set in ascending order.

    Raises:
        ValueError: if the sizes do not fit in the data set or the fraction is not in [0, 1].
    """
    check_sizes(len(labels), validation_size, train_size, confusion_size, label_noise)
    order = torch.randperm(len(labels), generator=stream(validation_seed, "validation"))
    validation = order[:validation_size].sort().values
    rest = order[validation_size:].sort().values
    if train_size is None:
        train_size = len(rest) - confusion_size
    # The confusion set is taken from the end, so that a fixed `train_size` isn't moved by its size.
    order = rest[torch.randperm(len(rest), generator=stream(seed, "training subset"))]
    clean = order[:train_size].sort().values
    confusion = order.flip(0)[:confusion_size]
    return TrainingPartition(
        clean_indices=clean,
        clean_labels=with_symmetric_noise(labels[clean], label_noise, num_classes, stream(seed, "label noise")),
        confusion_indices=confusion,
        confusion_labels=torch.randint(num_classes, (confusion_size,), generator=stream(seed, "confusion labels")),
        validation_indices=validation,
    )

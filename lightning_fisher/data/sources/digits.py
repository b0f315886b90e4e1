"""The handwritten digits that come with scikit-learn: nothing to download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_fisher.data.images import SourceSplits, memory_images

_TEST_SIZE = 797
_SPLIT_SEED = 0


def load_digits(*, num_classes: int = 10, channels: int = 1, image_size: int | Sequence[int] = 8) -> SourceSplits:
    """Read the digits: 1,000 training and 797 test images, 8x8, 1 channel, 10 classes.

    The set has no official split: this one is stratified by class and fixed for good, by a seed of its own. The
    gray levels 0 to 16 are stretched to 0 to 255.

    Args:
        num_classes: checked against the labels.
        channels: checked against the images.
        image_size: checked against the images.

    Returns:
        The training and the test images.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=_TEST_SIZE, stratify=digits.target, random_state=_SPLIT_SEED
    )
    sources = [
        memory_images(
            images[part],
            digits.target[part],
            split=split,
            num_classes=num_classes,
            channels=channels,
            image_size=image_size,
        )
        for split, part in (("train", train), ("test", test))
    ]
    return SourceSplits(*sources)

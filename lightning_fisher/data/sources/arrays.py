"""Bring your own data: an `.npz` archive."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from lightning_fisher.data.images import SourceSplits, memory_images
from lightning_fisher.data.sources.files import KEYS, VALIDATION_KEYS, require_archive


def load_arrays(
    *, num_classes: int, channels: int, image_size: int | Sequence[int], path: str | None = None
) -> SourceSplits:
    """Read the arrays of an `.npz` archive, such as those of MedMNIST.

    Args:
        num_classes: number of classes K.
        channels: C.
        image_size: H and W, or one number for both.
        path: the archive with `train_images`, `test_images` (uint8 `[N, H, W, C]`, or `[N, H, W]` for one channel)
            and `train_labels`, `test_labels` (whole numbers from 0 to K - 1, `[N]` or `[N, 1]`); if there are
            `val_images` and `val_labels`, they are the validation images. Other arrays are not read. Nothing in it is
            unpickled.

    Returns:
        The training and the test images, and the validation images if there are some.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no path is given, the file isn't such an archive, its arrays are not as described, one of the two
            for validation is missing, or the training labels are all the same.
    """
    require_archive(path)
    assert path is not None
    try:
        with np.load(path, allow_pickle=False) as archive:
            own_validation = set(VALIDATION_KEYS) <= set(archive.files)
            wanted = (*KEYS, *VALIDATION_KEYS) if own_validation else KEYS
            names = archive.files
            arrays = {key: archive[key] for key in wanted if key in names}
            if any(isinstance(array, bytes) for array in arrays.values()):
                raise ValueError("it holds files that are no arrays")
    except (EOFError, MemoryError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise ValueError(
            f"Expected argument `path` to be an .npz archive of plain arrays, but {str(path)!r} cannot be read "
            f"as one: {reason}"
        ) from error
    if not set(KEYS) <= set(arrays):
        raise ValueError(
            f"Expected the arrays in {str(path)!r} to be named {', '.join(KEYS)}, but got {', '.join(names)}."
        )
    half = [name for name in VALIDATION_KEYS if name in names]
    if len(half) == 1:
        raise ValueError(f"Expected {' and '.join(VALIDATION_KEYS)} in {str(path)!r}, or neither, but got {half[0]}.")
    train, test, *validation = (
        memory_images(
            arrays[f"{split}_images"],
            arrays[f"{split}_labels"],
            split=split,
            num_classes=num_classes,
            channels=channels,
            image_size=image_size,
        )
        for split in (("train", "test", "val") if own_validation else ("train", "test"))
    )
    if train.labels.eq(train.labels[0]).all():
        raise ValueError(
            f"Expected `train_labels` in {str(path)!r} to hold at least 2 classes, but all {len(train.labels)} are "
            f"{int(train.labels[0])}."
        )
    return SourceSplits(train, test, *validation)

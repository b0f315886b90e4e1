"""What a data set needs on disk, checked without reading it: before torch is imported, and again by what reads it."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
"""The arrays of an archive."""

VALIDATION_KEYS = ("val_images", "val_labels")
"""Those of its validation images, if it has some."""

TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1_000}
"""Known before anything is read."""

CIFAR_FOLDERS = {"CIFAR-10": "cifar-10-batches-py", "CIFAR-100": "cifar-100-python"}
IMAGENET_SPLITS = ("train", "val")


def require_archive(path: str | None) -> None:
    """Check that there is an `.npz` archive.

    Args:
        path: of the archive.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no path is given, or the file is no archive.
    """
    if path is None:
        raise ValueError(
            f"Expected argument `path` to be an .npz file with {', '.join(KEYS)}, but got none: set data.path=FILE.npz."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected argument `path` to be an .npz file with {', '.join(KEYS)}, but there is no file {str(path)!r}."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"Expected argument `path` to be an .npz archive of plain arrays, but {str(path)!r} cannot be read "
            "as one: it is no archive, or only part of one."
        )


def cifar_not_found(name: str, data_dir: str) -> FileNotFoundError:
    """The error of a CIFAR data set that is missing or incomplete.

    Args:
        name: `"CIFAR-10"` or `"CIFAR-100"`.
        data_dir: where it was looked for.
    """
    return FileNotFoundError(
        f"{name} was not found, or is incomplete, in {str(data_dir)!r}: set data.data_dir to the folder that holds "
        f"{CIFAR_FOLDERS[name]}, or data.download=true to download it."
    )


def require_cifar(name: str, data_dir: str, download: bool) -> None:
    """Check that there is the folder of a CIFAR data set, unless it is to be downloaded.

    Args:
        name: `"CIFAR-10"` or `"CIFAR-100"`.
        data_dir: the folder that holds it.
        download: whether it may be missing.

    Raises:
        FileNotFoundError: if it is missing.
    """
    if not download and not (Path(data_dir) / CIFAR_FOLDERS[name]).is_dir():
        raise cifar_not_found(name, data_dir)


def imagenet_not_found(data_dir: str, detail: str) -> FileNotFoundError:
    """The error of folders of images that are missing.

    Args:
        data_dir: where they were looked for.
        detail: what is missing.
    """
    return FileNotFoundError(
        f"ImageNet was not found in {str(data_dir)!r}: set data.data_dir to a folder with train/CLASS/ and val/CLASS/ "
        f"folders of images ({detail})."
    )


def require_imagenet(data_dir: str) -> None:
    """Check that there are the folders of the two splits.

    Args:
        data_dir: the folder that holds them.

    Raises:
        FileNotFoundError: if one is missing.
    """
    for split in IMAGENET_SPLITS:
        if not (Path(data_dir) / split).is_dir():
            raise imagenet_not_found(data_dir, f"there is no folder {str(Path(data_dir) / split)!r}")


# The checks by the name of the data set, given the options of its source.
_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "arrays": lambda options: require_archive(options.get("path")),
    "cifar10": lambda options: require_cifar("CIFAR-10", options["data_dir"], options["download"]),
    "cifar100": lambda options: require_cifar("CIFAR-100", options["data_dir"], options["download"]),
    "imagenet": lambda options: require_imagenet(options["data_dir"]),
}


def require_files(name: str, options: Mapping[str, Any]) -> None:
    """Check that what a data set needs on disk is there.

    Args:
        name: of the data set, as in `lightning_fisher.data.SOURCES`; nothing is known of others.
        options: of the `data` configuration; a set whose options are incomplete is not checked.

    Raises:
        FileNotFoundError: if it is missing, with what to do about it.
        ValueError: if it is something else.
    """
    check = _CHECKS.get(name)
    complete = name not in ("cifar10", "cifar100", "imagenet") or isinstance(options.get("data_dir"), str)
    if check is not None and complete:
        check({"download": True, **options})


def training_images(name: str, options: Mapping[str, Any]) -> int | None:
    """The number of training images of a data set, without reading them.

    Args:
        name: of the data set, as in `lightning_fisher.data.SOURCES`.
        options: of the `data` configuration.

    Returns:
        Their number; `None` where only reading tells, or there is no such file.
    """
    if name != "arrays":
        return TRAINING_IMAGES.get(name)
    return archive_sizes(options.get("path")).get("train_images")


def usual_validation_size(path: str | None) -> int:
    """How many training images of an `.npz` archive are set aside by default: 5,000, or a tenth of fewer than 10,000.

    Args:
        path: of the archive; 5,000 where there is none.
    """
    available = archive_sizes(path).get("train_images")
    return 5000 if available is None or available >= 10_000 else available // 10


def archive_sizes(path: str | None) -> dict[str, int]:
    """The lengths of the arrays of an `.npz` archive, from their headers; empty where there is no such archive."""
    try:
        stat = Path(str(path)).stat()
        return _archive_sizes(str(Path(str(path)).absolute()), stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


@functools.lru_cache(maxsize=64)
def _archive_sizes(path: str, modified: int, size: int) -> dict[str, int]:
    sizes = {}
    with zipfile.ZipFile(path) as archive:
        from numpy.lib import format as npy

        for name in (*KEYS, *VALIDATION_KEYS):
            if f"{name}.npy" in archive.namelist():
                with archive.open(f"{name}.npy") as array:
                    read = npy.read_array_header_1_0 if npy.read_magic(array) == (1, 0) else npy.read_array_header_2_0
                    shape = read(array)[0]
                    sizes[name] = int(shape[0]) if shape else 0
    return sizes


def check_sizes(
    available: int, validation_size: int, train_size: int | None, confusion_size: int, label_noise: float
) -> None:
    """Refuse sizes that do not fit in a data set.

    Args:
        available: number of official training images; the others as in
            :func:`lightning_fisher.data.partition.partition_training_set`.
        validation_size: number of validation images.
        train_size: number of clean images, or `None`.
        confusion_size: number of images with random labels.
        label_noise: the fraction of clean labels that is changed.

    Raises:
        ValueError: naming the argument.
    """
    if not 0 <= validation_size < available:
        raise ValueError(
            f"Expected argument `validation_size` to be from 0 to {available - 1} (the data set has {available} "
            f"training images), but got {validation_size}."
        )
    rest = available - validation_size
    if not 0 <= confusion_size < rest:
        raise ValueError(f"Expected argument `confusion_size` to be from 0 to {rest - 1}, but got {confusion_size}.")
    if train_size is not None and not 1 <= train_size <= rest - confusion_size:
        raise ValueError(
            f"Expected argument `train_size` to be null or from 1 to {rest - confusion_size} ({available} training "
            f"images less {validation_size} for validation and {confusion_size} for confusion), "
            f"but got {train_size}."
        )
    if not 0 <= label_noise <= 1:
        raise ValueError(f"Expected argument `label_noise` to be from 0 to 1, but got {label_noise}.")


def require_sizes(name: str, options: Mapping[str, Any]) -> int | None:
    """Check that the sizes which a configuration asks for fit in a data set, as far as is known without reading it.

    Args:
        name: of the data set, as in `lightning_fisher.data.SOURCES`.
        options: of the `data` configuration.

    Returns:
        The number of clean training images; `None` where only reading tells.

    Raises:
        ValueError: naming the argument.
    """
    available = training_images(name, options)
    if available is None:
        return None
    own_validation = name == "arrays" and set(VALIDATION_KEYS) <= set(archive_sizes(options.get("path")))
    validation = 0 if own_validation else int(options.get("validation_size") or 0)
    train, confusion = options.get("train_size"), int(options.get("confusion_size") or 0)
    check_sizes(available, validation, train, confusion, float(options.get("label_noise") or 0.0))
    return int(train) if train is not None else available - validation - confusion

"""What a data set needs on disk, checked without reading it: before torch is imported, and again by what reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
"""The arrays of an archive."""

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
            f"There is no file {str(path)!r}: set data.path to an .npz file with {', '.join(KEYS)}."
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

"""What tells one content of a data set from another, wherever it lies: without torch, and without reading much."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fisher.data.sources.files import IMAGENET_SPLITS, KEYS, VALIDATION_KEYS

READ_AT_MOST = 2**28
"""Folders of more bytes are told apart by the names and sizes of their files: 256 MiB."""


def archive_fingerprint(path: str | Path) -> str | None:
    """Fingerprint of the arrays of an `.npz` archive.

    Made of the checksums (CRC-32) and sizes that the archive keeps of its arrays: nothing is decompressed, and an
    archive that is compressed in another way has the same one. Arrays that are not read don't count.

    Args:
        path: of the archive.

    Returns:
        16 hexadecimal digits; `None` where there is no such archive.
    """
    wanted = {f"{key}.npy" for key in (*KEYS, *VALIDATION_KEYS)}
    try:
        with zipfile.ZipFile(Path(path)) as archive:
            parts = [(i.filename, i.file_size, i.CRC) for i in archive.infolist() if i.filename in wanted]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()[:16]


def folder_fingerprint(data_dir: str | Path) -> str | None:
    """Fingerprint of the files below `train` and `val`: names and contents, or sizes of more than 256 MiB.

    Args:
        data_dir: the folder that holds them.

    Returns:
        16 hexadecimal digits; `None` where there is no file.
    """
    files = [(name, Path(data_dir, name)) for name in sorted(_visible(Path(data_dir)))]
    if not files:
        return None
    digest, sizes = hashlib.sha256(), [file.stat().st_size for _, file in files]
    read = sum(sizes) <= READ_AT_MOST
    for (name, file), size in zip(files, sizes, strict=True):
        content = hashlib.sha256(file.read_bytes()).hexdigest() if read else size
        digest.update(f"{name} {content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _visible(data_dir: Path) -> Iterator[str]:
    """The files of the splits, relative to the folder, without hidden ones."""
    for split in IMAGENET_SPLITS:
        for folder, folders, names in os.walk(data_dir / split, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if not name.startswith("."):
                    yield Path(folder, name).relative_to(data_dir).as_posix()


# By the name of the data set; the content of the others never changes: bundled, or checked against a checksum.
_FINGERPRINTS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "arrays": lambda options: archive_fingerprint(options["path"]),
    "imagenet": lambda options: folder_fingerprint(options["data_dir"]),
}


def fingerprint(name: str, options: Mapping[str, Any]) -> str | None:
    """Fingerprint of the content of a data set.

    Args:
        name: of the data set, as in `lightning_fisher.data.SOURCES`.
        options: of the `data` configuration.

    Returns:
        16 hexadecimal digits; `None` where the name says it all, and where there are no data.
    """
    make = _FINGERPRINTS.get(name)
    if make is None:
        return None
    with suppress(OSError, KeyError, TypeError):  # what is missing is said by `require_files`
        return make(options)
    return None

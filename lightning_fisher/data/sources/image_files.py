"""Image files as they look in a viewer: upright, opaque, 8 bits a channel. What can't be read that way is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CHECKED_FILES = 100_000
"""Of more files (ImageNet has 1.28 million), so many, evenly spread, are checked before training."""
MAX_DECODED_BYTES = 2**30
"""Up to this size of all files together each is decoded once before training; beyond, its header and end are read."""
_PHOTOMETRIC = 262  # tag of TIFF
_UNUSED_RANGE = 2**12  # 16-bit images that are darker than this would keep fewer than 16 of their levels


def read_image(file: str) -> Image:
    """Decode an image as RGB.

    The EXIF orientation is applied. 16-bit gray levels are scaled from 0–65535 to 0–255 (16-bit color is cut to 8 bits
    by Pillow); palettes and CMYK are converted without color profiles; of several frames the first is read.

    Args:
        file: the image file.

    Returns:
        The image, of mode RGB.

    Raises:
        ValueError: if it cannot be read, is transparent in places, or has pixels without a known range (floating-point
            or 32-bit numbers): with its name.
    """
    return _read(file)[0]


def check_image_files(files: Sequence[str]) -> None:
    """Refuse files that can't be read, before they are trained on.

    All files are decoded if together they are small (`MAX_DECODED_BYTES`). Otherwise their header is read, and those
    that end without the end marker of their format are decoded. A file that is damaged in its middle is then found when
    it is trained on.

    Args:
        files: the image files.

    Raises:
        ValueError: with the name of the first file that can't be read; if the 16-bit images use a small part of their
            range only.
    """
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), MAX_CHECKED_FILES)).round().astype(int)]
    decode = sum(map(_size, chosen)) <= MAX_DECODED_BYTES
    largest = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside of Python's lock
        try:
            found = pool.map(lambda file: _check(file, decode), chosen)
            shown: dict[str, Any] = {"desc": "Checking images", "unit": "file", "leave": False, "delay": 3}
            for value in tqdm(found, total=len(chosen), disable=None, **shown):  # None: on a terminal only
                largest = max(largest, value)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if 0 < largest < _UNUSED_RANGE:
        raise ValueError(
            f"Expected 16-bit images to use the range 0 to 65535, but the largest gray level of {files[0]!r} and the "
            f"others is {largest}: save them with 8 bits, stretched to 0 to 255."
        )


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:  # a dangling link: named when it is opened
        return 0


def _check(file: str, decode: bool) -> int:
    """Check one file and return its largest 16-bit gray level, 0 for other images."""
    from PIL import Image

    if decode:
        return _read(file)[1]
    try:
        with Image.open(file) as image:
            sound = image.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and "transparency" not in image.info
            form = image.format
        with open(file, "rb") as stream:
            stream.seek(-min(_size(file), 4096), os.SEEK_END)
            end = stream.read()
    except Exception as error:
        raise _unreadable(file, error) from error
    marker = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}.get(form or "", b"")
    return 0 if sound and marker in end else _read(file)[1]


def _read(file: str) -> tuple[Image, int]:
    """The image as RGB, and its largest 16-bit gray level; 0 for images of 8 bits."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            opened.load()
            form = opened.format
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16") or (image.mode == "I" and form in ("PNG", "PPM")):
            if "transparency" in image.info:
                raise ValueError("parts of it are transparent, and what is behind them is not defined")
            levels = np.asarray(image).astype(np.int64)
            if form == "TIFF" and opened.tag_v2.get(_PHOTOMETRIC) == 0:  # white is zero: Pillow inverts 8 bits only
                levels = 65535 - levels
            scaled = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
            return scaled.convert("RGB"), max(1, int(levels.max()))
        if image.mode in ("I", "F"):
            kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
            raise ValueError(f"its pixels are {kind} of unknown range: save it with 8 or 16 bits")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema() != (255, 255):
                raise ValueError("parts of it are transparent, and what is behind them is not defined")
        return image.convert("RGB"), 0
    except Exception as error:  # whatever a damaged file raises
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: Exception) -> ValueError:
    what = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"Cannot read the image {file!r} ({what}): replace it or remove it.")

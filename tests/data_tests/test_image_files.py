"""Image files are read as a viewer shows them, or refused by name before training."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_fisher.data import load_imagenet
from lightning_fisher.data.sources import image_files
from lightning_fisher.data.sources.image_files import check_image_files, read_image

RNG = np.random.default_rng(0)
COLOR = RNG.integers(256, size=(6, 9, 3), dtype=np.uint8)
GRAY16 = np.array([[0, 1, 128, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
# By hand, v / 257 to the nearest integer: 128 / 257 = 0.498, 32768 / 257 = 127.502, 65278 / 257 = 254 exactly,
# 65407 / 257 = 254.502.
GRAY8 = np.array([[0, 0, 0, 1], [128, 254, 255, 255]], dtype=np.uint8)


def read(file: Path) -> np.ndarray:
    image = read_image(str(file))
    assert image.mode == "RGB"
    return np.asarray(image)


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit gray PNG, written by hand: big-endian rows, each after a filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(pixels: np.ndarray, order: str, white_is_zero: bool) -> bytes:
    """A 16-bit gray TIFF, written by hand: header, one directory of short values, one strip."""
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 0 if white_is_zero else 1), (273, 0), (277, 1)]
    tags += [(278, height), (279, pixels.size * 2)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, start if tag == 273 else value, 0) for tag, value in tags
    )
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}IH", 8, len(tags)) + entries + struct.pack(f"{order}I", 0)
    return magic + directory + pixels.astype(f"{order}u2").tobytes()


def test_16_bit_gray_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(GRAY16))
    (tmp_path / "a.pgm").write_bytes(b"P5 4 2 65535\n" + GRAY16.astype(">u2").tobytes())
    (tmp_path / "little.tif").write_bytes(tiff16(GRAY16, "<", white_is_zero=False))
    (tmp_path / "big.tif").write_bytes(tiff16(GRAY16, ">", white_is_zero=False))
    (tmp_path / "inverted.tif").write_bytes(tiff16(65535 - GRAY16, "<", white_is_zero=True))
    for file in tmp_path.iterdir():
        assert np.array_equal(read(file), np.stack([GRAY8] * 3, axis=-1)), file.name


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a.transpose(1, 0, 2), 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, shown) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOR).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), shown(COLOR))


def test_other_modes_are_read_as_they_look(tmp_path: Path) -> None:
    gray = COLOR[..., 0]
    few = (COLOR // 128) * 255  # 8 colors, exact in a palette
    opaque = np.concatenate([COLOR, np.full((6, 9, 1), 255, np.uint8)], axis=-1)
    cases = {
        "gray.png": (Image.fromarray(gray), np.stack([gray] * 3, axis=-1)),
        "palette.png": (Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE), few),
        "palette.bmp": (Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE), few),
        "opaque.png": (Image.fromarray(opaque), COLOR),
        "cmyk.tif": (Image.fromarray(np.dstack([255 - COLOR, gray * 0]), mode="CMYK"), COLOR),  # no black: 255 - ink
        "bits.png": (Image.fromarray(gray > 127), np.stack([(gray > 127) * np.uint8(255)] * 3, axis=-1)),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        assert np.array_equal(read(tmp_path / name), expected), name


def transparent(kind: str) -> Image.Image:
    alpha = np.full((6, 9), 255, np.uint8)
    alpha[2, 3] = 254
    if kind == "LA":
        return Image.merge("LA", [Image.fromarray(COLOR[..., 0]), Image.fromarray(alpha)])
    return Image.fromarray(np.dstack([COLOR, alpha]))


def test_what_has_no_one_look_is_refused(tmp_path: Path) -> None:
    for kind in ("LA", "RGBA"):
        transparent(kind).save(tmp_path / f"{kind}.png")
    Image.fromarray(COLOR[..., 0]).convert("P").save(tmp_path / "key.png", transparency=int(COLOR[0, 0, 0]))
    Image.fromarray(RNG.random((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(RNG.integers(2**31, size=(4, 4)).astype(np.int32)).save(tmp_path / "int.tif")
    reasons = {"float.tif": "floating-point numbers", "int.tif": "32-bit integers"}
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=reasons.get(file.name, "parts of it are transparent")) as error:
            read_image(str(file))
        assert str(error.value).startswith(f"Cannot read the image {str(file)!r} (")
        assert "\n" not in str(error.value)


@pytest.fixture
def good(tmp_path: Path) -> list[str]:
    for i in range(5):
        Image.fromarray(RNG.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(RNG.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
    return sorted(map(str, tmp_path.iterdir()))


def damaged(file: Path, how: str) -> None:
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes({"cut": content[:half], "empty": b"", "text": b"<html>not found</html>"}[how])


@pytest.mark.parametrize("decoded", [2**30, 0], ids=["decoded", "headers only"])
@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("name", ["3.png", "3.jpg"])
def test_a_bad_file_is_named(good, tmp_path: Path, monkeypatch, decoded: int, how: str, name: str) -> None:
    monkeypatch.setattr(image_files, "MAX_DECODED_BYTES", decoded)
    check_image_files(good)
    damaged(tmp_path / name, how)
    with pytest.raises(ValueError, match=rf"^Cannot read the image '.*{name}' \(.*\): replace it or remove it\.$"):
        check_image_files(good)


def test_damage_in_the_middle_is_found_by_decoding(good, tmp_path: Path) -> None:
    file = tmp_path / "2.png"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"2\.png"):
        check_image_files(good)


def test_a_jpeg_with_something_behind_its_end_is_good(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(image_files, "MAX_DECODED_BYTES", 0)
    file = tmp_path / "a.jpg"
    Image.fromarray(COLOR).save(file)
    file.write_bytes(file.read_bytes() + b"\0" * 10_000)
    check_image_files([str(file)])


def test_of_very_many_files_a_part_is_checked(good, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(image_files, "MAX_CHECKED_FILES", 2)
    damaged(tmp_path / "2.png", "cut")
    check_image_files(good)  # first and last
    damaged(Path(good[-1]), "cut")
    with pytest.raises(ValueError, match=r"4\.png"):
        check_image_files(good)


@pytest.mark.parametrize("decoded", [2**30, 0])
def test_16_bits_of_which_12_are_used_are_refused(tmp_path: Path, monkeypatch, decoded: int) -> None:
    monkeypatch.setattr(image_files, "MAX_DECODED_BYTES", decoded)
    for i, largest in enumerate((4000, 4095)):
        (tmp_path / f"{i}.png").write_bytes(png16(np.array([[0, largest]], dtype=np.uint16)))
    files = sorted(map(str, tmp_path.iterdir()))
    with pytest.raises(ValueError, match=r"16-bit images to use the range 0 to 65535, but the largest .* is 4095"):
        check_image_files(files)
    (tmp_path / "2.png").write_bytes(png16(np.array([[0, 4096]], dtype=np.uint16)))
    check_image_files([*files, str(tmp_path / "2.png")])


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(COLOR).save(tmp_path / split / name / "0.png")
    before = load_imagenet(data_dir=str(tmp_path), num_classes=2, image_size=6).train
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / ".ipynb_checkpoints" / "0.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    after = load_imagenet(data_dir=str(tmp_path), num_classes=2, image_size=6).train
    assert after.files == before.files
    assert torch.equal(after.labels, before.labels)

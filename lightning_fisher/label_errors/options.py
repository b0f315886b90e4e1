"""The options of the command, and what is refused before anything is read or trained."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from lightning_fisher.command_line.parser import OneLineParser
from lightning_fisher.label_errors.scores import SCORES
from lightning_fisher.optional_packages import require_package

LEAST = {"--epochs": 1, "--batch-size": 2, "--image-size": 1, "--top": 1, "--seed": 0}
LARGEST_SEED = 2**32 - 1


def parser() -> OneLineParser:
    """The options."""
    made = OneLineParser(
        prog="python -m lightning_fisher.label_errors",
        description="Train a network on labeled images, record the gradient norm of every image over the training, and "
        "list the images whose label disagrees with the others: candidates for wrong labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("data", help="an .npz with images and labels, a folder with a folder for each class, or digits")
    made.add_argument("--out", default="label_errors.csv", help="the ranking, a line per image")
    made.add_argument("--images", default="label_errors.png", help="a picture of the first ones; none: no picture")
    made.add_argument(
        "--overwrite", action="store_true", help="replace these files; else a number is added to new ones"
    )
    made.add_argument("--top", type=int, default=40, help="images in the picture")
    made.add_argument("--score", choices=SCORES, default="gradient_norm", help="what the ranking is by")
    made.add_argument(
        "--epochs", type=int, default=10, help="length of the training; a long one learns wrong labels too"
    )
    made.add_argument("--lr", type=float, default=0.1, help="learning rate, of SGD with momentum and a cosine")
    made.add_argument("--batch-size", type=int, default=64, help="images in a batch")
    made.add_argument("--image-size", type=int, default=32, help="height and width that image files are brought to")
    made.add_argument("--network", help="import path of a function of num_classes and in_channels; default: a ResNet-8")
    made.add_argument("--noise", type=float, default=0.0, help="fraction of labels to replace first, to see them found")
    made.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the noise")
    made.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, …")
    return made


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that are out of range.

    Raises:
        ValueError: with the option, what is allowed and the value received.
    """
    for name, least in LEAST.items():
        value = getattr(options, name[2:].replace("-", "_"))
        if value < least:
            raise ValueError(f"Expected {name} to be at least {least}, but got {value}.")
    if options.seed > LARGEST_SEED:
        raise ValueError(f"Expected --seed to be at most {LARGEST_SEED}, but got {options.seed}.")
    if not (math.isfinite(options.lr) and options.lr > 0):
        raise ValueError(f"Expected --lr to be a positive number, but got {options.lr}.")
    if not 0 <= options.noise < 1:
        raise ValueError(f"Expected --noise to be at least 0 and less than 1, but got {options.noise}.")


def output_files(out: str, picture: str, overwrite: bool) -> tuple[Path, Path | None]:
    """Where the ranking and the picture go: beside those of an earlier command, if there are some.

    Args:
        out: the file of the ranking.
        picture: that of the picture, or ``"none"``.
        overwrite: whether earlier ones are replaced.

    Returns:
        Both files; None without a picture.

    Raises:
        ValueError: if a folder can't be written in.
        ImportError: if what draws the picture is missing.
    """
    pictured = picture != "none"
    wanted = [Path(out)] + ([Path(picture)] if pictured else [])
    for name, file in zip(("--out", "--images"), wanted, strict=False):
        _require_writable(name, file)
    if pictured:
        require_package("matplotlib", "the picture (--images=none leaves it out)")
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        kinds = FigureCanvasAgg.get_supported_filetypes()
        if wanted[1].suffix[1:].lower() not in kinds:
            raise ValueError(f"Expected --images to end in .{', .'.join(sorted(kinds))}, but got {picture!r}.")
        if wanted[0] == wanted[1]:
            raise ValueError(f"Expected --out and --images to be two files, but got {out!r} for both.")
    files, number = wanted, 1
    while not overwrite and any(file.exists() for file in files):
        number += 1
        files = [file.with_name(f"{file.stem}-{number}{file.suffix}") for file in wanted]
    return files[0], files[1] if pictured else None


def _require_writable(name: str, file: Path) -> None:
    reason = "it is a folder" if file.is_dir() else ""
    if not reason:
        try:  # permissions alone don't tell: there are read-only file systems, and the superuser
            with tempfile.TemporaryFile(dir=file.parent):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
    if reason:
        words = "a file in a folder that can be written in"
        raise ValueError(f"Expected {name} to be {words}, but got '{file}' ({reason}).")

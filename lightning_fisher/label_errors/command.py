"""``python -m lightning_fisher.label_errors``: train a network on labeled images and rank their labels."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from lightning_fisher.data import LabeledImages, Normalization, NormalizedImages, channel_statistics
from lightning_fisher.data.partition import with_symmetric_noise
from lightning_fisher.data.randomness import stream
from lightning_fisher.label_errors.image_grid import plot_suspects
from lightning_fisher.label_errors.images import OwnImages, read_images
from lightning_fisher.label_errors.recorder import LabelErrorRecorder
from lightning_fisher.label_errors.scores import SCORES, LabelScores, roc_auc
from lightning_fisher.models import resnet
from lightning_fisher.module import ImageClassifier
from lightning_fisher.optional_packages import missing_package, require_package

SHOWN = 10
QUIET_SECONDS = 10.0  # between two lines of a training
HINTS = ".*does not have many workers.*|.*LeafSpec.*|.*logging interval.*|.*have no `val_dataloader`.*"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
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
    made.add_argument("--accelerator", default="auto", help="auto, cpu or gpu")
    return made


class EpochLines(Callback):
    """Print a line at the end of an epoch, at most every ten seconds: how far a training is, where there is no bar."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        now, done = time.monotonic(), trainer.current_epoch + 1
        if now - self._printed >= QUIET_SECONDS or done == trainer.max_epochs:
            self._printed = now
            logged = {key: float(trainer.callback_metrics[key]) for key in ("train_loss", "train_error")}
            errors = f"training error {logged['train_error']:.1f} %"
            print(f"epoch {done}/{trainer.max_epochs}: loss {logged['train_loss']:.4f}, {errors}", flush=True)


def find_label_errors(
    images: OwnImages,
    labels: Tensor,
    *,
    network: nn.Module,
    epochs: int = 10,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    accelerator: str = "auto",
) -> LabelScores:
    """Train a network on images and record their gradients after every epoch.

    Args:
        images: the images.
        labels: what to train with, int64 ``[n]``.
        network: images to logits; trained in place.
        epochs: length of the training.
        lr: the first learning rate of SGD (momentum 0.9, weight decay 5e-4); it falls to 0 as a cosine.
        batch_size: images in a batch.
        seed: of the order of the batches.
        accelerator: Lightning's.

    Returns:
        The scores of all images.
    """
    mean, std = channel_statistics(images.source.images)
    normalization = Normalization(tuple(mean), tuple(s or 1.0 for s in std))
    dataset = NormalizedImages(LabeledImages(images.source, torch.arange(len(labels)), labels), normalization)
    recorder = LabelErrorRecorder(dataset)
    module = ImageClassifier(
        network,
        partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=5e-4),
        partial(CosineAnnealingLR, T_max=epochs),
    )
    last = len(dataset) % batch_size == 1  # batch-norm has no statistics of one image
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=last, generator=generator)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[recorder] if sys.stdout.isatty() else [recorder, EpochLines()],
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),  # where the bar is drawn
    )
    trainer.fit(module, loader)
    return recorder.scores()


def make_network(path: str | None, num_classes: int, channels: int) -> nn.Module:
    """The network of an import path, or a ResNet-8.

    Raises:
        ValueError: if there is none, or it is no network.
    """
    if path is None:
        return resnet(num_classes=num_classes, in_channels=channels, depth=8, width=16)
    module, _, name = path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)(num_classes=num_classes, in_channels=channels)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected --network to be a function of num_classes and in_channels, but got {path!r} ({error})."
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"Expected --network to make a torch module, but {path!r} made a {type(made).__name__}.")
    return made


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
    if picture != "none":
        require_package("matplotlib", "the picture (--images=none leaves it out)")
    wanted = [Path(out)] + ([Path(picture)] if picture != "none" else [])
    for name, file in zip(("--out", "--images"), wanted, strict=False):
        folder = file.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or file.is_dir():
            raise ValueError(f"Expected {name} to be a file in a folder that can be written in, but got '{file}'.")
    files, number = wanted, 1
    while not overwrite and any(file.exists() for file in files):
        number += 1
        files = [file.with_name(f"{file.stem}-{number}{file.suffix}") for file in wanted]
    if number > 1:
        there = ", ".join(str(file) for file in wanted if file.exists())
        print(f"{there} stays as it is: writing {' and '.join(map(str, files))} (--overwrite replaces it)", flush=True)
    return files[0], files[1] if len(files) > 1 else None


def run(options: argparse.Namespace) -> None:
    """Read, train, write and say what was found.

    Raises:
        ValueError: in one line, if an option or the data don't fit.
        ImportError: in one line, if a package is missing.
    """
    for name, value in (("--epochs", options.epochs), ("--batch-size", options.batch_size), ("--top", options.top)):
        if value < (2 if name == "--batch-size" else 1):
            raise ValueError(f"Expected {name} to be at least {2 if name == '--batch-size' else 1}, but got {value}.")
    if not 0 <= options.noise < 1:
        raise ValueError(f"Expected --noise to be at least 0 and less than 1, but got {options.noise}.")
    out, picture = output_files(options.out, options.images, options.overwrite)
    images = read_images(options.data, options.image_size)
    count, channels, height, width = images.source.images.shape
    if count < 2 or images.num_classes < 2:
        raise ValueError(f"Expected images of at least 2 classes, but got {count} of {images.num_classes}.")
    given = images.source.labels
    labels = with_symmetric_noise(given, options.noise, images.num_classes, stream(options.seed, "label noise"))
    seed_everything(options.seed, verbose=False)
    network = make_network(options.network, images.num_classes, channels)
    print(f"{count:,} images of {height} x {width}, {images.num_classes} classes; {options.epochs} epochs", flush=True)
    start = time.perf_counter()
    chosen = {name: getattr(options, name) for name in ("epochs", "lr", "batch_size", "seed", "accelerator")}
    scores = find_label_errors(images, labels, network=network, **chosen)
    differing = int((scores.predicted_labels != labels).sum())
    scores.to_csv(out, options.score, images.files)
    print(f"{time.perf_counter() - start:.0f} s; {differing:,} labels are not what the network predicts on average")
    _show(scores, options.score, images)
    if options.noise:
        _show_found(scores, labels != given, options.score)
    print(f"{out}: all images, the most suspicious first")
    if picture is not None:
        wrong = labels != given if options.noise else None
        plot_suspects(
            picture,
            images.source.images,
            scores,
            kind=options.score,
            count=options.top,
            class_names=images.class_names,
            wrong=wrong,
        )
        print(f"{picture}: the first {min(options.top, count)}")


def _show(scores: LabelScores, kind: str, images: OwnImages) -> None:
    def name(label: Any) -> str:
        return images.class_names[int(label)] if images.class_names is not None else str(int(label))

    print(f"{'index':>7}  {'given':<12} {'predicted':<12} {'score':>8}")
    score, predicted = scores.score(kind), scores.predicted_labels
    for i in scores.ranking(kind)[:SHOWN].tolist():
        file = f"  {images.files[i]}" if images.files is not None else ""
        print(f"{i:>7}  {name(scores.given_labels[i]):<12} {name(predicted[i]):<12} {float(score[i]):>8.3f}{file}")


def _show_found(scores: LabelScores, wrong: Tensor, kind: str) -> None:
    areas = ", ".join(f"{name} {roc_auc(scores.score(name), wrong):.3f}" for name in SCORES)
    number = int(wrong.sum())
    first = float(wrong[scores.ranking(kind)[:number]].double().mean())
    print(f"{number:,} labels were replaced. ROC AUC: {areas}")
    print(f"{first:.1%} of the first {number:,} are among them, {float(wrong.double().mean()):.1%} by chance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; errors are one line.

    Returns:
        The exit status.
    """
    options = parser().parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=HINTS)
    try:
        run(options)
    except KeyboardInterrupt:
        print("\nInterrupted: nothing was written.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        missing = missing_package(error)
        if isinstance(error, (ImportError, RuntimeError)) and missing is None:
            raise
        print(f"Error: {' '.join((missing or str(error)).split())}", file=sys.stderr)
        return 1
    return 0

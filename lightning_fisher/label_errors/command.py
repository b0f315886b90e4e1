"""``python -m lightning_fisher.label_errors``: train a network on labeled images and rank their labels."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from lightning_fisher.command_line import signals
from lightning_fisher.data import LabeledImages, Normalization, NormalizedImages, channel_statistics
from lightning_fisher.data.partition import with_symmetric_noise
from lightning_fisher.data.randomness import stream
from lightning_fisher.label_errors.image_grid import plot_suspects
from lightning_fisher.label_errors.images import OwnImages, read_images
from lightning_fisher.label_errors.options import check_options, output_files, parser
from lightning_fisher.label_errors.recorder import LabelErrorRecorder
from lightning_fisher.label_errors.scores import SCORES, LabelScores, roc_auc
from lightning_fisher.models import resnet
from lightning_fisher.module import ImageClassifier
from lightning_fisher.optional_packages import missing_package

SHOWN = 10
INTERRUPTED = "Interrupted. Each file is there as a whole, or not at all; the same command starts again."
QUIET_SECONDS = 10.0  # between two lines of a training
HINTS = ".*does not have many workers.*|.*LeafSpec.*|.*logging interval.*|.*have no `val_dataloader`.*"


class SignalsBack(Callback):
    """Take SIGTERM back from Lightning, whose handler ends the training as if it were complete."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen again, in a command that listened before."""
        signals.listen()


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
    callbacks = [recorder, SignalsBack(), *([] if sys.stdout.isatty() else [EpochLines()])]
    try:
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=callbacks,
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),  # where the bar is drawn
        )
    except (MisconfigurationException, ValueError) as error:
        raise ValueError(
            f"Expected --accelerator to be auto, or one that this machine has, but got {accelerator!r} ({error})"
        ) from error
    try:
        trainer.fit(module, loader)
    except SystemExit:
        raise KeyboardInterrupt from None  # Lightning's answer to one
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
    except Exception as error:  # of any code
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"Expected --network to be a function of num_classes and in_channels, but got {path!r} ({reason})."
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"Expected --network to make a torch module, but {path!r} made a {type(made).__name__}.")
    return made


def _try_network(path: str, network: nn.Module, images: OwnImages) -> None:
    """Refuse a network that cannot be trained, or doesn't turn these images into a logit for each class."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"Expected --network to make a module with parameters to train, but {path!r} has none.")
    try:
        with torch.no_grad():
            logits = network.eval()(images.source.images[:2].float() / 255)
    except Exception as error:  # of any code
        shape = list(images.source.images.shape[1:])
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"Expected --network to take images of shape {shape}, but {path!r} raises {reason}") from error
    network.train()
    got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != [2, images.num_classes]:
        raise ValueError(
            f"Expected --network to return logits [N, {images.num_classes}], but got {got} from {path!r} for 2 images."
        )


def run(options: argparse.Namespace) -> None:
    """Read, train, write and say what was found.

    Raises:
        ValueError: in one line, if an option or the data don't fit.
        ImportError: in one line, if a package is missing.
    """
    check_options(options)
    out, picture = output_files(options.out, options.images, options.overwrite)
    images = read_images(options.data, options.image_size)
    count, channels, height, width = images.source.images.shape
    given = images.source.labels
    present = len(given.unique())
    if present < 2:
        raise ValueError(f"Expected images of at least 2 classes, but got {count:,} of {present}.")
    if picture is not None and channels not in (1, 3):
        raise ValueError(
            f"Expected images of 1 or 3 channels for the picture, but got {channels} (--images=none leaves it out)."
        )
    labels = with_symmetric_noise(given, options.noise, images.num_classes, stream(options.seed, "label noise"))
    if options.noise and not 0 < int((labels != given).sum()) < count:
        raise ValueError(f"Expected --noise to replace some of {count:,} labels, but {options.noise} is none or all.")
    seed_everything(options.seed, verbose=False)
    network = make_network(options.network, images.num_classes, channels)
    if options.network is not None:
        _try_network(options.network, network, images)
    epochs = f"{options.epochs} epoch{'' if options.epochs == 1 else 's'}"
    print(f"{count:,} images of {height} x {width}, {images.num_classes} classes; {epochs}", flush=True)
    if out != Path(options.out):
        there = " and ".join(name for name in (options.out, options.images) if Path(name).exists())
        files = " and ".join(str(file) for file in (out, picture) if file is not None)
        print(f"Writing {files}: there is {there} already (--overwrite replaces such files)", flush=True)
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
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return signals.exit_code()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        missing = missing_package(error)
        if isinstance(error, (ImportError, RuntimeError)) and missing is None:
            raise
        print(f"Error: {' '.join((missing or str(error)).split())}", file=sys.stderr)
        return 1
    return 0

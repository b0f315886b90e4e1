"""An epoch by Lightning, with and without the waiting callback, relative to a bare PyTorch loop on the same data."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from benchmarks.fits import bare_trainer, quiet
from benchmarks.lockstep import Lockstep
from benchmarks.networks import Network, make
from benchmarks.process import time_apart
from benchmarks.timing import rows_of
from lightning_fisher import FisherRegularizer, SharpnessAware
from lightning_fisher.callbacks.random_state import RandomState
from lightning_fisher.data import AUGMENTATIONS
from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.module import ImageClassifier

BASELINE = "bare PyTorch loop"
AUGMENTATION = "4-crop-f"

Say = Callable[[str], None]
_sgd = partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=1e-4)


def times(
    network: Network,
    *,
    images: int,
    batch_size: int,
    rounds: int,
    thread_counts: Iterable[int],
    device: torch.device,
    compile_backend: str | None = None,
    bfloat16: bool = False,
) -> list[dict[str, Any]]:
    """Time an epoch of every loop with each number of threads.

    Args:
        network: what is trained.
        images: of an epoch.
        batch_size: images of a step.
        rounds: epochs of each loop.
        thread_counts: numbers of threads.
        device: where.
        compile_backend: of `torch.compile`, for loops over a compiled network beside the others; ``None``: none.
        bfloat16: by autocast, channels last.
    """
    loops = {name: partial(job, name, compile_backend=None) for name in (BASELINE, *LOOPS)}
    if compile_backend is not None:
        for name in COMPILED:
            loops[f"{name}, torch.compile ({compile_backend})"] = partial(job, name, compile_backend=compile_backend)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        archive = _archive(network, images, batch_size, Path(folder))
        for count in thread_counts:
            jobs = {name: partial(loop, network, batch_size, archive, device, bfloat16) for name, loop in loops.items()}
            samples = time_apart(jobs, rounds=rounds, threads=count, device=device)
            title = network.title + ", bfloat16, channels last" * bfloat16
            settings = {"network": title, "threads": count, "batch_size": batch_size, "images": images}
            for row in rows_of(samples, BASELINE):
                rows.append(settings | row | {"images_per_second": images / float(str(row["seconds"]))})
    return rows


def job(
    name: str,
    network: Network,
    batch_size: int,
    archive: Path,
    device: torch.device,
    bfloat16: bool,
    stack: ExitStack,
    *,
    compile_backend: str | None,
) -> Callable[[], object]:
    """An epoch of a loop."""
    data = ImageDataModule(
        "arrays",
        num_classes=network.num_classes,
        channels=3,
        image_size=network.image_size,
        batch_size=batch_size,
        augmentation=AUGMENTATION,
        path=str(archive),
    )
    if name == BASELINE:
        return _bare(network, data, device, compile_backend, bfloat16)
    callbacks, options = LOOPS[name](archive.parent)
    if bfloat16:
        options = options | {"precision": "bf16-mixed"}
    fit = partial(_fit, network, data, device, compile_backend, bfloat16, callbacks, options)
    return stack.enter_context(Lockstep(fit, "epoch"))


def _archive(network: Network, images: int, batch_size: int, folder: Path) -> Path:
    """Random images in an archive, as `data=arrays` reads them."""
    random = np.random.default_rng(0)
    shape = (network.image_size, network.image_size, 3)
    arrays: dict[str, Any] = {}
    for split, count in (("train", images), ("test", batch_size)):
        arrays[f"{split}_images"] = random.integers(256, size=(count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(network.num_classes, size=count)
    archive = folder / "images.npz"
    np.savez(archive, **arrays)
    return archive


def _bare(
    network: Network, data: ImageDataModule, device: torch.device, compile_backend: str | None, bfloat16: bool
) -> Callable[[], None]:
    """No data loader, no hooks: the images on the device, indexed; the same normalization and augmentation."""
    data.setup()
    images, labels = (t.to(device) for t in data.train_set.__getitems__(range(len(data.train_set))))
    augment = AUGMENTATIONS[AUGMENTATION]
    layout = torch.channels_last if bfloat16 else torch.contiguous_format
    net = make(network, device).train().to(memory_format=layout)
    if compile_backend is not None:
        net.compile(backend=compile_backend, dynamic=False)
    optimizer = _sgd(net.parameters())
    generator = torch.Generator().manual_seed(0)

    def epoch() -> None:
        total = torch.zeros((), device=device)
        wrong = torch.zeros((), device=device)
        for chosen in torch.randperm(len(labels), generator=generator).to(device).split(data.batch_size):
            x, y = augment(data.normalization(images[chosen]), generator), labels[chosen]
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = net(x.contiguous(memory_format=layout))
                loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(y)
            wrong += (logits.argmax(1) != y).sum()
        if not math.isfinite(total.item() + wrong.item()):
            raise RuntimeError("the bare loop diverged")

    return epoch


def _with_everything(folder: Path) -> tuple[list[Callback], dict[str, Any]]:
    options = {"logger": CSVLogger(folder), "log_every_n_steps": 10, "enable_checkpointing": True}
    return [FisherRegularizer(), RandomState(), ModelCheckpoint(folder / "checkpoints", save_last=True)], options


LOOPS: dict[str, Callable[[Path], tuple[list[Callback], dict[str, Any]]]] = {
    "Lightning": lambda folder: ([], {}),
    "Lightning + waiting FisherRegularizer": lambda folder: ([FisherRegularizer()], {}),
    "Lightning + FisherRegularizer, logger, checkpoints": _with_everything,
    "Lightning + SharpnessAware": lambda folder: ([SharpnessAware()], {}),
    'Lightning + SharpnessAware(precision="trainer")': lambda folder: ([SharpnessAware(precision="trainer")], {}),
}
"""Callbacks and options of the Trainer, which write to a folder."""
COMPILED = [BASELINE, "Lightning", 'Lightning + SharpnessAware(precision="trainer")']  # beside the eager ones


def _fit(
    network: Network,
    data: ImageDataModule,
    device: torch.device,
    compile_backend: str | None,
    channels_last: bool,
    callbacks: list[Callback],
    options: dict[str, Any],
    gate: Callback,
) -> None:
    with quiet():
        trainer = bare_trainer([gate, *callbacks], device, max_epochs=-1, **options)
        module = ImageClassifier(make(network, device), _sgd, channels_last=channels_last)
        if compile_backend is not None:  # as `compile=True` does, by any backend
            module.net.compile(backend=compile_backend, dynamic=False)
        trainer.fit(module, datamodule=data)

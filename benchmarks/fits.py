"""The fits by Lightning that are timed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_fisher.module import ImageClassifier


@contextmanager
def quiet() -> Iterator[None]:
    """No hints about workers, loggers and the like."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def bare_trainer(callbacks: list[Callback], device: torch.device, **options: Any) -> Trainer:
    """A Trainer that trains on one device and does nothing else."""
    settings: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        callbacks=callbacks,
        **(settings | options),
    )


class _Endless:
    """A data loader over batches that never end."""

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches


def fit_batches(
    net: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: Callable[..., torch.optim.Optimizer],
    callbacks: list[Callback],
    device: torch.device,
) -> None:
    """Train ``net`` on batches that are on the device already, without an end."""
    with quiet():
        trainer = bare_trainer(callbacks, device, max_epochs=1, max_steps=-1)
        module = ImageClassifier(net, optimizer)
        module.print = lambda *args, **kwargs: None  # type: ignore[method-assign]
        trainer.fit(module, train_dataloaders=_Endless(batches))

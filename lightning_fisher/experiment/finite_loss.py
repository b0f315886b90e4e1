"""End a run whose training loss is no longer a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_fisher.experiment.errors import ConfigError


class FiniteLoss(Callback):
    """Raise when a step of the epoch had an infinite loss or NaN; the device is asked once an epoch.

    Comes before the callbacks that measure the network, for which there is nothing left to measure.
    """

    def __init__(self) -> None:
        super().__init__()
        self._diverged: Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Note whether the loss is finite, without waiting for the device."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            bad = ~torch.isfinite(loss.detach()).all()
            self._diverged = bad if self._diverged is None else self._diverged | bad

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask before validation."""
        self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask at the end of an epoch without validation."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self._diverged is not None and bool(self._diverged):
            rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            raise ConfigError(
                f"Training diverged: the loss was not finite in epoch {trainer.current_epoch + 1} "
                f"(learning rate {rate:g}); lower model.optimizer.lr or reg.beta."
            )

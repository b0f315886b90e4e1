"""End a run whose loss or weights are no longer numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_fisher.exceptions import ConfigError


class FiniteLoss(Callback):
    """Raise when a loss of the epoch, or a weight at its end, is infinite or NaN; the device is asked once an epoch.

    Comes before the callbacks that measure the network, for which there is nothing left to measure, and before those
    that write checkpoints: the last and the best one stay what they were. All processes raise together.
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
        if not trainer.sanity_checking:
            self._check(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for the loss that the best checkpoint goes by; running statistics can overflow before weights do."""
        loss = trainer.callback_metrics.get("val_loss")
        if not trainer.sanity_checking and loss is not None and not bool(torch.isfinite(loss)):
            raise _diverged(trainer, "the validation loss was")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask at the end of an epoch without validation."""
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = self._diverged is not None and bool(self._diverged)
        weights = not bool(torch.stack([torch.isfinite(p).all() for p in pl_module.parameters()]).all())
        if trainer.strategy.reduce_boolean_decision(loss or weights, all=False):
            raise _diverged(trainer, "the loss was" if loss or not weights else "a weight was")


def _diverged(trainer: Trainer, what: str) -> ConfigError:
    rate = float(trainer.optimizers[0].param_groups[0]["lr"])
    return ConfigError(
        f"Training diverged: {what} not finite in epoch {trainer.current_epoch + 1} (learning rate {rate:g}); "
        "lower model.optimizer.lr or reg.beta."
    )

"""Stop when the training loss has plateaued often enough and the training set is fitted."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_fisher.arguments import require_integer


class StopAtConvergence(Callback):
    """The stopping rule of the paper's scenarios (Sec. 7.1).

    Training goes on until the training loss has plateaued ``plateaus`` times and the training error is at most
    ``max_error``, or to the trainer's epoch limit. A plateau is a drop of the learning rate: use it with
    ``ReduceLROnPlateau`` on the training loss. Lightning steps that scheduler after the epoch's last hook, so
    the epoch after the last counted drop is still trained.

    Attributes:
        plateaus_seen: drops of the learning rate so far.
        converged: whether the rule stopped the training (else the epoch limit did).

    Args:
        plateaus: how many plateaus it takes, at least 1.
        max_error: the largest training error, in per cent, in [0, 100).
        monitor: the logged training error, a value of the epoch.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(self, plateaus: int = 2, max_error: float = 0.0, monitor: str = "train_error") -> None:
        super().__init__()
        require_integer("plateaus", plateaus, least=1)
        if not 0 <= max_error < 100:
            raise ValueError(f"Expected argument `max_error` to be in [0, 100), but got {max_error!r}.")
        self.plateaus = plateaus
        self.max_error = max_error
        self.monitor = monitor
        self.plateaus_seen = 0
        self.converged = False
        self._lr: float | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count a drop, and stop when both conditions hold.

        Raises:
            ValueError: if the module does not log ``monitor``.
        """
        lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        if self._lr is not None and lr < self._lr:
            self.plateaus_seen += 1
        self._lr = lr
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"Expected argument `monitor` to be one of the logged values "
                f"{sorted(trainer.callback_metrics)}, but got {self.monitor!r}."
            )
        error = float(trainer.callback_metrics[self.monitor])
        if self.plateaus_seen >= self.plateaus and error <= self.max_error:
            self.converged = True
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The count, for a resumed run."""
        return {"plateaus_seen": self.plateaus_seen, "converged": self.converged, "lr": self._lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.plateaus_seen = state_dict["plateaus_seen"]
        self.converged = state_dict["converged"]
        self._lr = state_dict["lr"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not train on when the run was stopped by the rule and is resumed from its last checkpoint."""
        if self.converged:
            trainer.should_stop = True

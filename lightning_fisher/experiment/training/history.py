"""The curve of a run: one record an epoch, kept in the checkpoint and in ``history.csv``."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_fisher.experiment.records.curve import FILE_NAME
from lightning_fisher.experiment.records.result import write_atomically

# What methods log, one value a step.
PENALTY = ("fisher/", "sharpness_aware/", "gradient_norm/", "fisher_penalty/", "jacobian/")


class History(Callback):
    """Record every epoch's logged values, learning rate, seconds, and whether the step was regularized.

    The records are part of the checkpoint: the curve of a resumed run is whole. A value that is not measured
    at every epoch (γ̂) appears only at the epochs it was measured at.

    Attributes:
        records: one dict an epoch.
        test_seconds: time of the final measurement.

    Args:
        folder: the run folder.
        regularizer: the regularizer's callback (anything with an ``active`` attribute), None without one.
        monitor: the metric's callback (with ``last`` and ``seconds``), None without one.
    """

    def __init__(self, folder: Path, regularizer: Any = None, monitor: Any = None) -> None:
        super().__init__()
        self.folder = folder
        self.regularizer = regularizer
        self.monitor = monitor
        self.records: list[dict[str, Any]] = []
        self.test_seconds = 0.0
        self._started = 0.0
        self._trained: float | None = None
        self._lr = 0.0
        self._penalties: list[dict[str, Any]] = []
        self._measured = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; the learning rate is that of the epoch (schedulers step before its end)."""
        self._started, self._trained = _now(pl_module), None
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._penalties = []
        self._measured = getattr(self.monitor, "seconds", 0.0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Collect what the regularizer logs a step, for its mean over the epoch."""
        if self._active():
            logged = trainer.callback_metrics
            self._penalties.append({key: value.detach() for key, value in logged.items() if key.startswith(PENALTY)})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long the training steps took."""
        if not trainer.sanity_checking:
            self._trained = _now(pl_module) - self._started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch. Runs after validation and the monitor, before the checkpoint of the epoch."""
        seconds = _now(pl_module) - self._started
        measured = getattr(self.monitor, "seconds", 0.0) - self._measured
        trained = self._trained if self._trained is not None else seconds - measured
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        active = self._active()
        # `callback_metrics` keeps what was logged at an earlier epoch.
        stale = set(getattr(self.monitor, "last", {})) if measured == 0.0 else set()
        shown = {k: v for k, v in values.items() if k not in stale and not k.startswith(PENALTY)}
        record: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": self._lr,
            "regularized": int(active),
            "seconds": round(seconds, 4),
            "step_ms": round(1000 * trained / max(1, int(trainer.num_training_batches)), 4),
            **shown,
            **self._mean_penalties(),
        }
        self.records.append(record)
        if trainer.is_global_zero:
            self.write()

    def _active(self) -> bool:
        """Whether the method is at work: from the start, if it doesn't say; never with a weight of zero."""
        method = self.regularizer
        return method is not None and bool(getattr(method, "active", True)) and bool(getattr(method, "trains", True))

    def _mean_penalties(self) -> dict[str, float]:
        """Means over the epoch; steps whose penalty was left out (nan) don't count."""
        keys = self._penalties[-1] if self._penalties else {}
        values = {key: [float(step[key]) for step in self._penalties if key in step] for key in keys}
        finite = {key: [value for value in steps if math.isfinite(value)] for key, steps in values.items()}
        return {key: fmean(steps) if steps else math.nan for key, steps in finite.items()}

    def write(self) -> None:
        """Write ``history.csv``: a column for every value that any epoch has."""
        columns = list(dict.fromkeys(key for record in self.records for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        write_atomically(self.folder / FILE_NAME, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """The records so far."""
        return {"records": list(self.records)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the records of the interrupted run."""
        self.records = list(state_dict["records"])


def _now(pl_module: LightningModule) -> float:
    """The time in seconds at which everything given to the device is done."""
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
    return time.perf_counter()

"""What a user sees while a run trains, on a terminal or in a log file."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import Progress as Bar

from lightning_fisher.experiment.display.terminal import QUIET_SECONDS, interactive, progress_bar
from lightning_fisher.experiment.training.history import History

DRAW_SECONDS = 0.1  # between two states of the bar; each asks the device for the loss


def epoch_line(record: dict[str, Any], max_epochs: int | None, seconds_left: float | None) -> str:
    """Describe an epoch in one line.

    Args:
        record: a record of :class:`History`.
        max_epochs: the epoch limit.
        seconds_left: estimate of the time to the limit.
    """
    epoch = int(record["epoch"]) + 1
    parts = [f"epoch {epoch:>3}" + (f"/{max_epochs}" if max_epochs else ""), f"lr {record['lr']:.3g}"]
    if "train_loss" in record:
        parts.append(f"train loss {record['train_loss']:.4f}")
    for key, name in (("train_error", "train error"), ("val_error", "val error")):
        if key in record:
            parts.append(f"{name} {record[key]:.2f} %")
    if "gamma" in record:
        parts.append(f"gamma {record['gamma']:.1f}")
    if record.get("regularized"):
        parts.append("regularized" + (f" (R {record['fisher/penalty']:.2e})" if "fisher/penalty" in record else ""))
    else:
        parts.append("plain")
    if seconds_left is not None:
        parts.append(f"{seconds_left:.0f} s left")
    return "  ".join(parts)


class Progress(Callback):
    """Print a line at most every ``every_seconds`` seconds, at the drop of the learning rate, and at the end.

    On a terminal a bar of the whole training stays below the lines. Runs after :class:`History`, whose last record it
    prints.

    Args:
        history: the records.
        every_seconds: least time between two lines of epochs.
        bar: draw a bar where there is a terminal.
    """

    def __init__(self, history: History, every_seconds: float = 1.0, bar: bool = True) -> None:
        super().__init__()
        self.history = history
        self.every_seconds = every_seconds
        self.bar = bar
        self._bar: Bar | None = None
        self._printed = 0.0
        self._drawn = 0.0
        self._started = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the estimate, and the bar."""
        self._started = self._printed = time.monotonic()
        self._first_epoch = trainer.current_epoch
        limit = trainer.max_epochs or 0
        if self.bar and limit > 0 and trainer.is_global_zero and interactive():
            self._bar = progress_bar()
            batches = int(trainer.num_training_batches)
            self._bar.add_task("", total=limit * batches, completed=trainer.current_epoch * batches, note="")
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show a sign of life: the bar, or a line within an epoch that takes long."""
        now = time.monotonic()
        if not trainer.is_global_zero or now - (self._drawn if self._bar else self._printed) < self._wait:
            return
        batch = int(args[-1]) + 1
        loss = args[0]["loss"] if isinstance(args[0], dict) and "loss" in args[0] else None
        text = "" if loss is None else f"  loss {float(loss):.4f}"
        if self._bar is not None:
            self._drawn = now
            done = trainer.current_epoch * int(trainer.num_training_batches) + batch
            name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.update(self._bar.task_ids[0], completed=done, description=name, note=text.strip(), refresh=True)
        else:
            self._print(f"epoch {trainer.current_epoch + 1:>3}  batch {batch}/{trainer.num_training_batches}{text}")

    @property
    def _wait(self) -> float:
        return DRAW_SECONDS if self._bar is not None else QUIET_SECONDS

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch, unless another was printed a moment ago."""
        if not trainer.is_global_zero or not self.history.records:
            return
        records, limit = self.history.records, trainer.max_epochs
        last = records[-1]
        changed = len(records) < 2 or any(records[-2][k] != last[k] for k in ("lr", "regularized"))
        final = limit is not None and trainer.current_epoch + 1 >= limit
        now = time.monotonic()
        if now - self._printed < self.every_seconds and not (changed or final):
            return
        done = trainer.current_epoch + 1 - self._first_epoch
        left = (limit - trainer.current_epoch - 1) * (now - self._started) / done if limit and limit > 0 else None
        self._print(epoch_line(last, limit, left if self._bar is None else None))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away, so that the cursor is there for what comes."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(line, markup=False)
        else:
            print(line, flush=True)

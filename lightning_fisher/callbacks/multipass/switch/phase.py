"""Whether the phase with the penalty has begun, and how much its schedule makes of the weight."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_fisher.arguments import require_choice, require_non_negative
from lightning_fisher.callbacks.multipass.switch.lr_drop import FirstDropOfAny, largest_rate
from lightning_fisher.callbacks.multipass.switch.start import Start

Schedule = Literal["constant", "linear", "cosine", "lr"]
SCHEDULES = ("constant", "linear", "cosine", "lr")


class Phase:
    """The phase with the penalty.

    Args:
        start: When it begins.
        schedule: ``"constant"``, ``"linear"``, ``"cosine"`` or ``"lr"``.
        ramp_epochs: Length of the ramp, in epochs.

    Attributes:
        active: Whether it has begun.
        step: ``trainer.global_step`` at which it began, or ``None``.
        epoch: Epoch in which it began, or ``None``.
        rate: The largest learning rate of all optimizers in the coming step; ``nan``: none has one.
    """

    def __init__(self, start: Start, schedule: Schedule, ramp_epochs: float) -> None:
        self.start, self.schedule, self.ramp_epochs = start, schedule, ramp_epochs
        self.active = False
        self.step: int | None = None
        self.epoch: int | None = None
        self.rate = math.nan
        self._time = 0.0  # in epochs, fractions included
        self._batch = 0
        self._peak_rate = 0.0  # the highest learning rate since the switch
        self._drop = FirstDropOfAny()
        self._stepping: set[int] = set()  # optimizers that have stepped, by id

    def update(self, trainer: Trainer, module: LightningModule, time: float) -> bool:
        """Look at the learning rates of the coming step; whether the phase begins with it.

        Args:
            trainer: The trainer.
            module: Its module.
            time: Epochs since the start of training, fractions count.
        """
        rates = [largest_rate(optimizer) for optimizer in trainer.optimizers]
        dropped = self.active or self._drop.update(rates, self._stepped(trainer, module), trainer.current_epoch)
        self.rate = max((rate for rate in rates if rate is not None), default=math.nan)
        begins = not self.active and self.start.reached(time, trainer.global_step, dropped)
        if begins:
            self.active = True
            self.step, self.epoch = trainer.global_step, trainer.current_epoch
            self._time, self._batch = time, trainer.fit_loop.total_batch_idx
        if self.active and self.rate > self._peak_rate:
            self._peak_rate = self.rate
        return begins

    def steps(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""
        self._stepping.add(id(optimizer))

    def _stepped(self, trainer: Trainer, module: LightningModule) -> list[bool | None]:
        """Which optimizers have taken a step; ``None``: unknown, where torch's are called past Lightning's."""
        if module.automatic_optimization:
            return [trainer.global_step > 0 for _ in trainer.optimizers]
        return [id(optimizer) in self._stepping if self._stepping else None for optimizer in trainer.optimizers]

    def since(self, trainer: Trainer, module: LightningModule) -> int:
        """Optimizer steps since the switch; batches in manual optimization, where a batch may take several."""
        if module.automatic_optimization:
            return trainer.global_step - (self.step or 0)
        return trainer.fit_loop.total_batch_idx - self._batch

    def progress(self, time: float) -> float:
        """How much of the ramp is over at ``time``, from 0 to 1; 1 where there is none."""
        elapsed = max(time - self._time, 0.0)
        return min(elapsed / self.ramp_epochs, 1.0) if self.ramp_epochs > 0 else 1.0

    def scheduled(self, time: float) -> float:
        """What the schedule multiplies the weight with, from 0 to 1."""
        progress = self.progress(time)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "lr":
            return progress * self.rate / self._peak_rate if self._peak_rate > 0 else progress
        return progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "active": self.active,
            "switch_step": self.step,
            "switch_epoch": self.epoch,
            "switch_time": self._time,
            "switch_batch": self._batch,
            "drop": self._drop.state_dict(),
            "peak_rate": self._peak_rate,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.active, self._time = state["active"], state["switch_time"]
        self.step, self.epoch = state["switch_step"], state["switch_epoch"]
        self._batch = state.get("switch_batch", 0)
        self._peak_rate = state.get("peak_rate", 0.0)
        self._drop.load_state_dict(state["drop"])


def check_schedule(name: str, schedule: Any, ramp_epochs: Any) -> None:
    """Refuse a schedule that isn't there, or a ramp without length.

    Args:
        name: Of the weight, in messages.
        schedule: The schedule.
        ramp_epochs: The length of the ramp.

    Raises:
        ValueError: With the argument, what is allowed and the value received.
    """
    require_non_negative("ramp_epochs", ramp_epochs)
    require_choice(f"{name}_schedule", schedule, SCHEDULES)
    if schedule in ("linear", "cosine") and not ramp_epochs > 0:
        raise ValueError(f"Expected argument `ramp_epochs` to be positive for a ramp, but got {ramp_epochs!r}.")

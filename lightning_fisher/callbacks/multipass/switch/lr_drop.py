"""The first drop of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch.optim import Optimizer

STEP_RATIO = 0.9 + 1e-9  # one step of a staircase schedule
PEAK_RATIO = 0.5 + 1e-9  # far down a smooth one; schedulers round


class FirstDrop:
    """Latches when the learning rate first drops.

    A drop is a value of at most 0.9 times the one before, or of at most half the highest so far, so that warm-up is no
    drop, a step schedule drops at its first step and a cosine one half-way down. A rate that the optimizer has never
    stepped with is none. Where only the rate of its very first step (in manual optimization: of the steps of its first
    batch) was higher, that may be a warm-up that sets the rate after the first step: it counts once a whole epoch more
    has passed without the rate having risen again.

    Attributes:
        dropped: Whether it has.
        previous: Last learning rate seen, or ``None``.
        peak: Highest learning rate seen.
    """

    def __init__(self) -> None:
        self.dropped = False
        self.previous: float | None = None
        self.peak = 0.0
        self._begun = False  # whether it has stepped
        self._seen = 0  # rates, of the first two
        self._pending: int | None = None  # epoch of a drop from the first step's rate, not decided yet
        self._low = math.inf  # lowest rate since

    def update(self, lr: float | None, stepped: bool | None = True, epoch: int = 0) -> bool:
        """Take the learning rate of the coming step; whether it has dropped by now.

        Args:
            lr: The rate; ``None`` where the optimizer has none.
            stepped: Whether the optimizer has taken a step; ``None``: unknown, one that steps with every batch.
            epoch: The epoch.
        """
        first = not self._begun and (self._seen == 1 if stepped is None else stepped)
        self._begun, self._seen = self._begun or bool(stepped), min(self._seen + 1, 2)
        if lr is None or not math.isfinite(lr):
            return self.dropped
        if stepped is False and not self._begun:
            self.previous = self.peak = lr
            return self.dropped
        fell = self.previous is not None and lr < self.peak
        fell = fell and (lr <= STEP_RATIO * (self.previous or 0.0) or lr <= PEAK_RATIO * self.peak)
        if self._pending is not None:
            if lr > self._low:  # a warm-up: the first step's rate is no peak
                self._pending, self.peak = None, lr
            elif epoch > self._pending + 1 or lr < STEP_RATIO * self._low:
                self._pending, self.dropped = None, True
            self._low = min(self._low, lr)
        elif fell and first and not self.dropped:
            self._pending, self._low = epoch, lr
        else:
            self.dropped |= fell
            self.peak = max(self.peak, lr)
        self.previous = lr
        return self.dropped

    def state_dict(self) -> dict[str, bool | float | None]:
        """Plain values."""
        return {
            "dropped": self.dropped,
            "previous": self.previous,
            "peak": self.peak,
            "pending": self._pending,
            "begun": self._begun,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict) -> None:
        """What `state_dict` gave."""
        self.dropped, self.previous, self.peak = state["dropped"], state["previous"], state["peak"]
        self._pending = state.get("pending")
        self._begun, self._seen = state.get("begun", self.previous is not None), state.get("seen", 2)
        self._low = self.previous if self.previous is not None else math.inf


class FirstDropOfAny:
    """The first drop of any of several optimizers."""

    def __init__(self) -> None:
        self._drops: list[FirstDrop] = []

    @property
    def dropped(self) -> bool:
        """Whether one has dropped."""
        return any(drop.dropped for drop in self._drops)

    def update(self, rates: Sequence[float | None], stepped: Sequence[bool | None], epoch: int) -> bool:
        """Take the rates of the coming step; see `FirstDrop.update`."""
        self._drops += [FirstDrop() for _ in rates[len(self._drops) :]]
        for drop, rate, has in zip(self._drops, rates, stepped, strict=False):
            drop.update(rate, has, epoch)
        return self.dropped

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [drop.state_dict() for drop in self._drops]

    def load_state_dict(self, state: Any) -> None:
        """What `state_dict` gave, or the state of a single `FirstDrop`."""
        self._drops = []
        for one in [state] if isinstance(state, dict) else state:
            drop = FirstDrop()
            drop.load_state_dict(one)
            self._drops.append(drop)


def largest_rate(optimizer: Optimizer) -> float | None:
    """The largest learning rate of an optimizer's groups; ``None`` where none is a number (Adafactor's own)."""
    rates = [float(group["lr"]) for group in optimizer.param_groups if group.get("lr") is not None]
    return max(rates, default=None)


def is_schedule_free(optimizers: Iterable[Optimizer]) -> bool:
    """Whether an optimizer does without a schedule: its learning rate never drops."""
    return any(
        "schedulefree" in f"{type(o).__module__}.{type(o).__name__}".lower().replace("_", "") for o in optimizers
    )


def averaging_steps(optimizer: Optimizer) -> int:
    """Steps until an optimizer's average of squared gradients has forgotten those before: 2/(1 − β₂); 1 without one.

    The length of the warm-up that Ma & Yarats (2021) give Adam.
    """
    decays = [group["betas"][-1] if "betas" in group else group.get("alpha") for group in optimizer.param_groups]
    return max(1, *(math.ceil(2 / (1 - d)) for d in decays if isinstance(d, float) and 0 <= d < 1), 1)

"""When the regularized phase starts: at the first learning-rate drop (Sec. 7.2.1), an epoch or a step."""

from __future__ import annotations

import re
from typing import Any

FIRST_LR_DROP = "first_lr_drop"
STEP_RATIO = 0.9 + 1e-9  # one step of a staircase schedule
PEAK_RATIO = 0.5 + 1e-9  # far down a smooth one; schedulers round


class Start:
    """``"first_lr_drop"``, an epoch (an integer or ``"epoch:60"``) or an optimizer step (``"step:1000"``).

    Raises:
        ValueError: If ``value`` is none of these.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        match = re.fullmatch(r"(epoch|step):(\d+)", value) if isinstance(value, str) else None
        if match:
            self._unit, self._at = match[1], int(match[2])
        elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            self._unit, self._at = "epoch", value
        elif value == FIRST_LR_DROP:
            self._unit, self._at = FIRST_LR_DROP, 0
        else:
            raise ValueError(
                'Expected argument `start` to be "first_lr_drop", an epoch (60 or "epoch:60") or a step ("step:1000"), '
                f"but got {value!r}."
            )

    def reached(self, epoch: int, step: int, dropped: bool) -> bool:
        """Whether the phase starts now or has started."""
        return {"epoch": epoch >= self._at, "step": step >= self._at, FIRST_LR_DROP: dropped}[self._unit]

    def __repr__(self) -> str:
        return repr(self.value)


class FirstDrop:
    """Latches when the learning rate first drops.

    A drop is a value of at most 0.9 times the one before, or of at most half the highest so far, so that warm-up is no
    drop, a step schedule drops at its first step and a cosine one half-way down.

    Attributes:
        dropped: Whether it has.
        previous: Last learning rate seen, or ``None``.
        peak: Highest learning rate seen.
    """

    def __init__(self) -> None:
        self.dropped = False
        self.previous: float | None = None
        self.peak = 0.0

    def update(self, lr: float) -> bool:
        """Take the learning rate of the coming step; whether it has dropped by now."""
        self.peak = max(self.peak, lr)
        if self.previous is not None and lr < self.peak:
            self.dropped |= lr <= STEP_RATIO * self.previous or lr <= PEAK_RATIO * self.peak
        self.previous = lr
        return self.dropped

    def state_dict(self) -> dict[str, bool | float | None]:
        """Plain values."""
        return {"dropped": self.dropped, "previous": self.previous, "peak": self.peak}

    def load_state_dict(self, state: dict) -> None:
        """What `state_dict` gave."""
        self.dropped, self.previous, self.peak = state["dropped"], state["previous"], state["peak"]

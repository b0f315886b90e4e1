"""When the regularised phase starts."""

from __future__ import annotations

import re
from typing import Any

FIRST_LR_DROP = "first_lr_drop"


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

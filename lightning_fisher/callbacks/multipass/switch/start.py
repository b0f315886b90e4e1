"""When the phase with the penalty starts: at the first learning-rate drop (Sec. 7.2.1), an epoch or a step."""

from __future__ import annotations

import re
from typing import Any

from lightning_fisher.arguments import is_finite_number

FIRST_LR_DROP = "first_lr_drop"
_TEXT = r"(?:(epoch):)?(\d+\.?\d*(?:e\+?\d+)?)|(step):(\d+)"


class Start:
    """``"first_lr_drop"``, an epoch (``60``, ``1.5``, ``"epoch:1.5"``) or an optimizer step (``"step:1000"``).

    A number may be given as text, as a command line does.

    Raises:
        ValueError: If ``value`` is none of these.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        match = re.fullmatch(_TEXT, value) if isinstance(value, str) else None
        if match:
            self._unit, self._at = match[1] or match[3] or "epoch", float(match[2] or match[4])
        elif is_finite_number(value) and value >= 0:
            self._unit, self._at = "epoch", float(value)
        elif value == FIRST_LR_DROP:
            self._unit, self._at = FIRST_LR_DROP, 0.0
        else:
            raise ValueError(
                'Expected argument `start` to be "first_lr_drop", an epoch (60, 1.5 or "epoch:60") or a step '
                f'("step:1000"), but got {value!r}.'
            )

    @property
    def waits_for_drop(self) -> bool:
        """Whether the learning rate decides."""
        return self._unit == FIRST_LR_DROP

    def reached(self, time: float, step: int, dropped: bool) -> bool:
        """Whether the phase starts now or has started, at ``time`` in epochs."""
        return {"epoch": time >= self._at, "step": step >= self._at, FIRST_LR_DROP: dropped}[self._unit]

    def __repr__(self) -> str:
        return repr(self.value)

"""The finite differences of ``R_α``, as a method of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_fisher.arguments import require_choice
from lightning_fisher.functional.multipass.passes import Evaluation, SubBatch

# Where the two gradients are taken, in steps; each difference spans one step.
DIFFERENCES = {"backward": (0.0, -1.0), "forward": (1.0, 0.0), "central": (0.5, -0.5)}
STEPS = ("fixed", "normalized")


@dataclass(frozen=True)
class FiniteDifference:
    """``L`` and ``∇L`` at the upper end of the step minus those at its lower end; see `difference_penalty_gradient`.

    Attributes:
        alpha: α: the step is ``α g_i``, or of length α.
        difference: ``"backward"``, ``"forward"`` or ``"central"``.
        step: ``"fixed"`` or ``"normalized"``.

    Raises:
        ValueError: If `difference` or `step` is none of these.
    """

    alpha: float
    difference: Literal["backward", "forward", "central"] = "backward"
    step: Literal["fixed", "normalized"] = "fixed"

    def __post_init__(self) -> None:
        require_choice("difference", self.difference, tuple(DIFFERENCES))
        require_choice("step", self.step, STEPS)

    @property
    def places(self) -> tuple[float, float]:
        """Upper and lower end, in steps from ``w``."""
        return DIFFERENCES[self.difference]

    def __call__(self, part: SubBatch) -> Evaluation:
        """The difference of a sub-batch."""
        fixed = self.step == "fixed"
        direction = part.here.gradient if fixed else part.ascent(self.alpha)
        length = self.alpha if fixed else 1.0
        upper, lower = (part.here if place == 0 else part.at(direction, place * length) for place in self.places)
        found = upper - lower
        return found if fixed else part.here.norm() * found

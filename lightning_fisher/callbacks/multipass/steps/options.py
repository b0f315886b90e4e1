"""How the passes of a step are made: the options, and what a method says of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_fisher.arguments import require_choice, require_integer
from lightning_fisher.callbacks.multipass.batches.sub_batches import SplitFn
from lightning_fisher.functional import Penalty
from lightning_fisher.functional.multipass.execution import check_passes
from lightning_fisher.functional.multipass.passes import Method
from lightning_fisher.functional.multipass.regularized import GRADIENTS, check_passes_of, check_scaling
from lightning_fisher.functional.multipass.sub_batches import check_perturbed

_MANUAL = {"losses": None, "optimizers": None, "manual_accumulation": 1}  # options of manual optimization only

PRECISIONS = ("full", "trainer")

OwnLoss = Callable[[LightningModule, Any, dict[str, Any]], Tensor]


class Definition(Protocol):
    """What a method says of itself.

    Attributes:
        method: What it makes of a sub-batch.
        own_loss: ``(module, sub-batch, memory) → loss`` evaluated in the extra passes in place of `training_step`, with
            a memory of the sub-batch that holds its ``"seed"`` in the pass at ``w``; ``None``: `training_step`.
        divergence: Whether the spread of the sub-batches' gradients is wanted.
    """

    @property
    def method(self) -> Method:
        """See above."""

    @property
    def own_loss(self) -> OwnLoss | None:
        """See above."""

    @property
    def divergence(self) -> bool:
        """See above."""

    def logged(self, penalty: Penalty, weight: float, suffix: str) -> dict[str, Tensor | float]:
        """What a step logs, by name."""


@dataclass(frozen=True)
class StepOptions:
    """How the penalty is evaluated; each as in `MultiPassCallback`.

    Raises:
        ValueError: If one doesn't fit.
    """

    num_sub_batches: int = 1
    split_fn: SplitFn | None = None
    gradient: str = "full"
    perturbed: int | None = None
    passes: str = "loop"
    scaling: str = "linear"
    precision: str = "full"
    losses: Sequence[int] | None = None
    optimizers: Sequence[int] | None = None
    manual_accumulation: int = 1

    def __post_init__(self) -> None:
        require_integer("num_sub_batches", self.num_sub_batches, least=1)
        require_choice("gradient", self.gradient, ("auto", *GRADIENTS))
        check_passes(self.passes)
        check_passes_of(self.gradient, self.passes)
        check_scaling(self.scaling)
        require_choice("precision", self.precision, PRECISIONS)
        if self.passes != "loop" and not self.precise:
            raise ValueError(
                'Expected argument `passes` to be "loop" with `precision="trainer"`, since those of vmap are in full '
                f"precision, but got {self.passes!r}."
            )
        check_perturbed(self.perturbed, self.num_sub_batches)
        if self.split_fn is not None and not callable(self.split_fn):
            raise ValueError(f"Expected argument `split_fn` to be callable or None, but got {self.split_fn!r}.")
        for name in ("losses", "optimizers"):
            require_numbers(name, getattr(self, name))
        require_integer("manual_accumulation", self.manual_accumulation, least=1)

    @property
    def precise(self) -> bool:
        """Whether the passes are in float32 or better, whatever the Trainer's precision."""
        return self.precision == "full"

    def require_trainer(self, trainer: Trainer) -> None:
        """Check that the passes can be in the Trainer's precision, where they are to be.

        Raises:
            ValueError: With the argument, what is allowed and the value received.
        """
        if not self.precise and getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                'Expected argument `precision` to be "full" where the Trainer scales losses, which the passes at '
                f'w + e don\'t, but got {self.precision!r} with Trainer(precision="{trainer.precision}"); choose '
                '"bf16-mixed".'
            )

    def require_module(self, module: LightningModule) -> None:
        """Check what only one kind of optimization has.

        Raises:
            ValueError: With the argument, what is allowed and the value received.
        """
        name = type(module).__name__
        if module.automatic_optimization:
            given = [key for key, default in _MANUAL.items() if getattr(self, key) != default]
            if given:
                raise ValueError(
                    f"Expected argument `{given[0]}` to be left out in automatic optimization, where there is one "
                    f"loss, but got {getattr(self, given[0])!r} with {name}."
                )
        elif self.gradient == "shared" or self.passes == "vmap":
            key, value = ("gradient", "full") if self.gradient == "shared" else ("passes", "loop")
            raise ValueError(
                f'Expected argument `{key}` to be "{value}" in manual optimization, where the step of the whole batch '
                f"is the module's own, but got {getattr(self, key)!r} with {name}."
            )

    def require_processes(self, world_size: int) -> None:
        """Check that the sub-batches can be spread over the processes.

        Raises:
            ValueError: With the argument and the number of processes.
        """
        for name in ("num_sub_batches", "perturbed"):
            value = getattr(self, name)
            if value is not None and value % world_size and self.num_sub_batches > 1:
                raise ValueError(
                    f"Expected argument `{name}` to be a multiple of the {world_size} processes, but got {value}."
                )


def require_numbers(name: str, value: Any) -> None:
    """Refuse what is neither `None` nor a list of numbers from 0 on.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    if value is not None and not (listed and all(type(i) is int and i >= 0 for i in value)):
        raise ValueError(f"Expected argument `{name}` to be a list of numbers from 0 on or None, but got {value!r}.")

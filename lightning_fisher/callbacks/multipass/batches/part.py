"""Run a module's `training_step` on a part of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_fisher.callbacks.multipass.batches.cutting import fresh
from lightning_fisher.callbacks.multipass.extra_pass import ExtraPasses, SkippedError
from lightning_fisher.callbacks.multipass.half_precision import HALF, Promotion, refuse_half_precision
from lightning_fisher.exceptions import LightningFisherError, NoGradientError, acting, first_line

_REMEDY = "keep no state from batch to batch, use fewer `num_sub_batches`, or give a `split_fn`"


class PartError(LightningFisherError, ValueError):
    """`training_step` runs on the batch, but not on a part of it.

    Args:
        module: The module.
        error: What its step raised.
    """

    def __init__(self, module: LightningModule, error: BaseException) -> None:
        self.message = (
            f"{acting()} needs a `training_step` that runs on parts of a batch, but that of "
            f"{type(module).__name__} fails there ({first_line(error)}); {_REMEDY}."
        )
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of(cls, module: LightningModule, error: Exception) -> PartError:
        """An error that is of the class of ``error`` as well, so that who waits for that class still gets it.

        But for the end of an iteration, which would end the epoch, and classes that can't be combined with this one.
        """
        if not isinstance(error, (StopIteration, StopAsyncIteration)):
            with suppress(Exception):
                both: type[PartError] = type(cls.__name__, (cls, type(error)), {"__module__": cls.__module__})
                return both(module, error)
        return cls(module, error)


class PartOfBatch:
    """Runs a step on parts, and tells the step's own failures from others.

    Args:
        trainer: The trainer.
        passes: What earlier steps have shown.
        precise: Whether the passes are in float32 or better, whatever the Trainer's precision.
    """

    def __init__(self, trainer: Trainer, passes: ExtraPasses, precise: bool = True) -> None:
        self._passes = passes
        self._trainer, self._precise = trainer, precise
        self._promotes = precise and "mixed" in str(trainer.precision)

    def run(self, training_step: Callable[[Any], Any], piece: Any) -> Any:
        """What the step returns for a copy of the piece."""
        promote = self._promotes and (self._passes.thorough > 0 or self._passes.promote)
        mode = Promotion() if promote else nullcontext()
        try:
            with mode:
                return training_step(fresh(piece))
        finally:
            if isinstance(mode, Promotion):
                self._passes.promote |= mode.needed

    def checked(self, loss: Tensor) -> Tensor:
        """The loss, which depends on the weights as precisely as it is to; looked at in the first steps."""
        if self._precise and self._passes.thorough > 0:
            refuse_half_precision(loss)
            if loss.dtype in HALF and not self._passes.rounded:
                self._passes.rounded = True
                warnings.warn(
                    f"`training_step` of {type(self._trainer.lightning_module).__name__} returns a loss in {loss.dtype}"
                    f": the penalty that {acting()} logs is a difference of rounded numbers; its gradient is exact. "
                    "Return the loss in float32.",
                    stacklevel=2,
                )
        return loss

    def explain(self, error: Exception, whole: Callable[[], Any]) -> None:
        """Say that a part has failed, before anything was trained on, if the whole batch doesn't fail too.

        Args:
            error: What was raised in the extra passes.
            whole: Runs and differentiates the step of the whole batch, whose own failure it raises.

        Raises:
            PartError: If so.
        """
        ours = isinstance(error, LightningFisherError) and not isinstance(error, NoGradientError)
        if ours or isinstance(error, (torch.OutOfMemoryError, SkippedError)):
            return
        module = self._trainer.lightning_module
        if self._passes.succeeded:
            if hasattr(error, "add_note"):
                error.add_note(f"Raised in a pass of {acting()}, on a part of a batch: {_REMEDY}.")
            return
        whole()
        raise PartError.of(module, error) from error

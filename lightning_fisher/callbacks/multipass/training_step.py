"""Exchange a module's `training_step` for one batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

TrainingStep = Callable[..., Any]


def in_place_of(training_step: TrainingStep, step: TrainingStep) -> TrainingStep:
    """``step``, which looks like the module's own: Lightning asks the signature whether it takes a batch index."""
    looks_alike = functools.wraps(training_step)(step)
    looks_alike.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]
    return looks_alike


class TrainingStepPatch:
    """Replace `training_step` on the instance for one batch and leave nothing behind."""

    def __init__(self, module: nn.Module, step: TrainingStep) -> None:
        self._module = module
        self._had = "training_step" in vars(module)
        self._before = vars(module).get("training_step")
        vars(module)["training_step"] = step

    def undo(self) -> None:
        """Restore the class's method, or the instance's own."""
        if self._had:
            vars(self._module)["training_step"] = self._before
        else:
            vars(self._module).pop("training_step", None)

"""Exchange methods of instances for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer

_MISSING = object()
_ORDINARY = {name for name in dir(Optimizer) if name != "step"}  # what changes no weights


@contextmanager
def patched(patches: Sequence[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """``(instance, name, function)``: the attribute of the instance hides its class's method."""
    before = [(owner, name, vars(owner).get(name, _MISSING)) for owner, name, _ in patches]
    try:
        for owner, name, function in patches:
            vars(owner)[name] = function
        yield
    finally:
        for owner, name, old in reversed(before):
            if old is _MISSING:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = old


def optimizer_methods(trainer: Trainer) -> Iterator[tuple[Any, int, str]]:
    """``(instance, number of the optimizer, name)`` of every method that may change weights.

    Of the optimizers and of what Lightning wraps them in: `step`, and what a class adds to those of
    `torch.optim.Optimizer` (`first_step` and `second_step` of SAM, `train` and `eval` of schedule-free ones).
    """
    wrapped = getattr(trainer.strategy, "_lightning_optimizers", [])
    for number, optimizer in enumerate(trainer.optimizers):
        names = [name for name in dir(type(optimizer)) if not name.startswith("_") and name not in _ORDINARY]
        names = [name for name in names if callable(getattr(type(optimizer), name))]
        for owner in [optimizer, *wrapped[number : number + 1]]:
            yield from ((owner, number, name) for name in names)

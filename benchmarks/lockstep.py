"""Run a Lightning Trainer a step or an epoch at a time, so that it can be timed in turns with others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

from greenlet import getcurrent, greenlet
from lightning.pytorch import Callback

Unit = Literal["step", "epoch"]


class _ClosedError(Exception):
    """Ends the fit from inside."""


class Lockstep:
    """A `Trainer.fit` on a stack of its own that goes on by one unit whenever it is called.

    A unit lasts from one start of a batch (or epoch) to the next: with everything Lightning does in between, fetching
    the next batch or ending the epoch included. The fit shares the caller's thread, as every thread that computes
    brings an OpenMP team of its own, and with more teams than cores each of them waits for the operating system in
    every operation.

    Args:
        fit: calls `Trainer.fit`; must give the callback it is passed to the Trainer, as the first one.
        unit: `"step"` or `"epoch"`.

    Raises:
        Exception: whatever `fit` raises, here or in the call that meets it.
    """

    def __init__(self, fit: Callable[[Callback], Any], unit: Unit) -> None:
        self._fit = greenlet(lambda: fit(_Gate(self, unit)))
        self()

    def pause(self) -> None:
        """Called by the fit where a unit begins."""
        self._caller.switch()

    def __call__(self) -> None:
        """Go on to the start of the next unit."""
        self._caller = getcurrent()
        if not self._fit.dead:
            self._fit.parent = self._caller
            self._fit.switch()
        if self._fit.dead:
            raise RuntimeError("the fit has ended")

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the fit."""
        if not self._fit.dead:
            self._fit.parent = getcurrent()
            with suppress(_ClosedError):
                self._fit.throw(_ClosedError)


class _Gate(Callback):
    def __init__(self, lockstep: Lockstep, unit: Unit) -> None:
        self._lockstep, self._unit = lockstep, unit

    def on_train_epoch_start(self, *args: Any) -> None:
        if self._unit == "epoch":
            self._lockstep.pause()

    def on_train_batch_start(self, *args: Any) -> None:
        if self._unit == "step":
            self._lockstep.pause()

"""Run a Lightning Trainer a step or an epoch at a time, so that it can be timed in turns with others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
from lightning.pytorch import Callback

Unit = Literal["step", "epoch"]


class _ClosedError(Exception):
    """Ends the fit from inside."""


class Lockstep:
    """A `Trainer.fit` in a thread of its own that goes on by one unit whenever it is called.

    Only one of the caller and the fit runs at any time. A unit lasts from one start of a batch (or epoch) to the next:
    with everything Lightning does in between, fetching the next batch or ending the epoch included.

    Args:
        fit: calls `Trainer.fit`; must give the callback it is passed to the Trainer, as the first one.
        unit: `"step"` or `"epoch"`.

    Raises:
        Exception: whatever `fit` raises, here or in the call that meets it.
    """

    def __init__(self, fit: Callable[[Callback], Any], unit: Unit) -> None:
        self._fit = fit
        self._go, self._there = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        self._error: BaseException | None = None
        self._count = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(_Gate(self, unit),), daemon=True)
        self._thread.start()
        self._wait()

    def _run(self, gate: Callback) -> None:
        torch.set_num_threads(self._count)  # a thread has its own setting
        try:
            self._fit(gate)
            self._error = RuntimeError("the fit has ended")
        except _ClosedError:
            self._error = RuntimeError("the fit was closed")
        except BaseException as error:
            self._error = error
        self._there.release()

    def _wait(self) -> None:
        self._there.acquire()
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        """Called by the fit where a unit begins."""
        self._there.release()
        self._go.acquire()
        if self._closed:
            raise _ClosedError

    def __call__(self) -> None:
        """Go on to the start of the next unit."""
        self._go.release()
        self._wait()

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the fit and wait until it is gone."""
        self._closed = True
        self._go.release()
        self._thread.join()


class _Gate(Callback):
    def __init__(self, lockstep: Lockstep, unit: Unit) -> None:
        self._lockstep, self._unit = lockstep, unit

    def on_train_epoch_start(self, *args: Any) -> None:
        if self._unit == "epoch":
            self._lockstep.pause()

    def on_train_batch_start(self, *args: Any) -> None:
        if self._unit == "step":
            self._lockstep.pause()

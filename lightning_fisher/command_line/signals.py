"""Ctrl-C, SIGTERM and SLURM's warning: the command ends at once, and the same command continues."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

AGAIN = "Interrupted before the first checkpoint. The same command starts again."


class Interrupted(KeyboardInterrupt):
    """The process was told to end; a KeyboardInterrupt, so that nothing which handles errors takes it for one."""


@dataclass
class _State:
    signum: int | None = None
    owner: int = 0  # the process that listens; those it forks do not
    last_words: Callable[[], str] | None = None  # while modules are imported: what is said before the end


_state = _State()


def signals() -> list[signal.Signals]:
    """Ctrl-C, what schedulers and `kill` send, and under SLURM what ``--signal=USR1@60`` sends before the limit."""
    found = [signal.SIGINT, signal.SIGTERM]
    return [*found, signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1") else found


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:  # forked, such as the worker of a data loader
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    elif _state.last_words is not None:
        _end(signum, _state.last_words)
    elif _state.signum is None:  # later ones are repetitions: a terminal's and a parent's
        _state.signum = signum
        raise Interrupted(signum)


def _end(signum: int, last_words: Callable[[], str]) -> None:
    """End the process at once, in one line."""
    with contextlib.suppress(Exception):
        line = last_words()
        sys.stdout.flush()
        os.write(2, f"\n{line}\n".encode())
    os._exit(128 + signum)


@contextmanager
def ending_at_once(last_words: Callable[[], str]) -> Iterator[None]:
    """End the process right at a signal, instead of raising: around imports.

    An exception in the middle of an import may be swallowed, or come out as another one, depending on whose module it
    is. Nothing is being written then.

    Args:
        last_words: makes the line that is printed.
    """
    _state.last_words = last_words
    try:
        yield
    finally:
        _state.last_words = None


def listen() -> None:
    """Take the signals, from whoever has taken them since, if this process and thread are to get them."""
    if _state.owner != os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    for signum in signals():
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup, or started in the background
            signal.signal(signum, _handle)


@contextmanager
def listening() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread at the first of the signals; put the handlers back at the end."""
    _state.signum = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.owner = os.getpid()
    before: dict[signal.Signals, Any] = {signum: signal.getsignal(signum) for signum in signals()}
    listen()
    try:
        yield
    finally:
        _state.owner = 0
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def exit_code() -> int:
    """The shells' convention: 128 + the signal's number; Ctrl-C's where there was no signal."""
    return 128 + (_state.signum or signal.SIGINT)

"""Something happens to a child: at a named point, or at the n-th event of its interpreter."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

STEP_OF_BATCH = "lightning.pytorch.core.module:LightningModule.optimizer_step"
NOTE = "where.txt"  # beside the run folder: where it happened


@dataclass(frozen=True)
class Send:
    """Send a signal to this process; by default it is killed as by `kill -9`."""

    signum: int = signal.SIGKILL

    def __call__(self, folder: Path) -> None:
        os.kill(os.getpid(), self.signum)


@dataclass(frozen=True)
class Call:
    """Before, after, or half-way through the bytes that are written by, the n-th call of a function."""

    target: str  # "module:function" or "module:Class.method"
    n: int
    when: str = "before"
    only: str = ""  # counts calls with an argument that ends with this
    batch: int = 0  # counts calls from the step of this batch on, over all epochs, from 1
    action: Callable[[Path], None] = Send()  # of the run folder

    def arm(self, folder: Path) -> None:
        """Replace the function; where the action lets it, the call goes on."""
        owner, name = find(self.target)
        original: Callable[..., Any] = getattr(owner, name)
        steps = count_steps() if self.batch else [0]
        calls = 0

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            counts = not self.only or any(str(getattr(a, "name", a)).endswith(self.only) for a in args)
            calls += counts and steps[0] >= self.batch
            due = calls == self.n
            calls += due  # once
            if due and self.when == "before":
                act(self.action, folder, sys._getframe())
            result = original(*args, **kwargs)
            if due and self.when == "half":
                file = args[1]
                file.flush()
                file.truncate(file.tell() // 2)
            if due and self.when != "before":
                act(self.action, folder, sys._getframe())
            return result

        setattr(owner, name, wrapper)


def find(target: str) -> tuple[Any, str]:
    """The module or class, and the name in it."""
    module_name, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for attribute in owners:
        owner = getattr(owner, attribute)
    return owner, name


def count_steps() -> list[int]:
    """One number, which grows by one when a batch's step begins (its extra passes are in it)."""
    owner, name = find(STEP_OF_BATCH)
    original, steps = getattr(owner, name), [0]

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    return steps


@dataclass(frozen=True)
class Event:
    """At the n-th call or return, of Python or C, between the begin of the training and the end of the final test.

    ``n = 0`` counts them: the number goes to ``events.txt`` beside the run folder.
    """

    n: int

    def arm(self, folder: Path) -> None:
        """Profile `fit` and `test`."""
        from lightning_fisher.experiment.training import train

        count = 0

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            nonlocal count
            count += 1
            if count == self.n:
                act(Send(), folder, frame)

        def profiled(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any) -> None:
                sys.setprofile(profile)
                function(*args)
                sys.setprofile(None)
                write(folder.parent / "events.txt", str(count))

            return wrapper

        train.fit, train.test = profiled(train.fit), profiled(train.test)


def act(action: Callable[[Path], None], folder: Path, frame: FrameType) -> None:
    """Note where, and do it."""
    sys.setprofile(None)
    names = [f.name for f in traceback.extract_stack(frame) if "lightning" in f.filename or "torch" in f.filename]
    write(folder.parent / NOTE, " < ".join(reversed(names)) + "\n")
    action(folder)


def write(path: Path, text: str) -> None:
    """Not by `open`, which is refused to what runs in an extra pass."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(file, text.encode())
    os.close(file)

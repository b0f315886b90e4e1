"""What a `training_step` tells the outside, of which nothing gets out of an extra pass."""

from __future__ import annotations

import builtins
import functools
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_fisher.callbacks.multipass.state.reach import is_users
from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError
from lightning_fisher.functional.evaluation.state.layers import submodules


def logging_modules(module: nn.Module) -> list[nn.Module]:
    """The LightningModules in a tree."""
    return [m for m in submodules(module) if hasattr(type(m), "log_dict")]


@contextmanager
def silenced(owners: Sequence[nn.Module], root: type) -> Iterator[None]:
    """Nothing is logged, printed or written by this thread: `log`, `log_dict`, `print`, `logging`, `open`.

    Args:
        owners: The LightningModules.
        root: The class of the one that is trained.

    Raises:
        LostStateError: In the pass, if code of the user's opens a file for writing.
    """
    before: list[dict[str, Any]] = [
        {name: vars(m)[name] for name in ("log", "log_dict", "print") if name in vars(m)} for m in owners
    ]
    thread, own = threading.get_ident(), root.__module__.partition(".")[0]
    printed, opened, opened_by_io = builtins.print, builtins.open, io.open
    handled = logging.Logger.callHandlers

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.thread != thread:
            handled(logger, record)

    try:
        for owner in owners:
            vars(owner).update(log=_nothing, log_dict=_nothing, print=_nothing)
        builtins.print = functools.partial(_print, printed)
        builtins.open = functools.partial(_open, opened, own, thread)  # type: ignore[assignment]
        io.open = functools.partial(_open, opened_by_io, own, thread)  # type: ignore[assignment]
        logging.Logger.callHandlers = handle  # type: ignore[method-assign, assignment]
        yield
    finally:
        builtins.print, builtins.open, io.open = printed, opened, opened_by_io
        logging.Logger.callHandlers = handled  # type: ignore[method-assign]
        for owner, saved in zip(owners, before, strict=True):
            for name in ("log", "log_dict", "print"):
                vars(owner).pop(name, None)
            vars(owner).update(saved)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _print(original: Callable[..., None], *values: Any, file: Any = None, **kwargs: Any) -> None:
    if file is not None:  # a debugger, a progress bar
        original(*values, file=file, **kwargs)


def _open(
    original: Callable[..., Any], own: str, thread: int, file: Any, mode: str = "r", *args: Any, **kwargs: Any
) -> Any:
    """`open`, unless code of the user's writes."""
    written = isinstance(file, (str, bytes, os.PathLike)) and bool(set(str(mode)) & set("wax+"))
    if written and os.fsdecode(file) != os.devnull and threading.get_ident() == thread:
        frame = sys._getframe(1)
        while frame.f_back is not None and _top(frame.f_globals) in sys.stdlib_module_names - {"__main__"}:
            frame = frame.f_back  # `pathlib`, `gzip`
        if is_users(frame.f_globals.get("__name__", ""), own):
            raise LostStateError(f"opens the file {str(file)!r} for writing", "write in `on_train_batch_end`")
    return original(file, mode, *args, **kwargs)


def _top(names: dict[str, Any]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]

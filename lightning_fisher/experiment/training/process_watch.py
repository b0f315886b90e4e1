"""The other processes of a run: when one fails, all end, each with a clear line."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_fisher.command_line import signals
from lightning_fisher.exceptions import RunError

PATIENCE_SECONDS = 5.0  # for this process to notice by itself that another has ended
POLL_SECONDS = 0.2
CONNECTION_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|socket|NCCL", re.IGNORECASE)


class Ranks(Callback):
    """Watch the processes that Lightning started on this machine, and end them when this one fails.

    Lightning kills the whole run, this process included, within five seconds of another's failure: no line, no
    clean-up, exit code 137. Here the first process ends with an error that says which one failed; only if it cannot
    (it waits in a collective that does not notice) is it ended from outside.

    Args:
        checkpoint: where the run continues; all processes must find the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checkpoint: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._done = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over from Lightning's own watch, and compare what the processes continue from.

        Raises:
            RunError: if this process does not find the checkpoint that the first one found.
        """
        started = getattr(trainer.strategy.launcher, "procs", None)
        if started:
            self._processes = list(started)
            started.clear()  # Lightning's watch looks at this list
            threading.Thread(target=self._watch, daemon=True, name="ranks").start()
        if stage == "fit" and trainer.world_size > 1:
            own = None if self.checkpoint is None else str(self.checkpoint)
            first = trainer.strategy.broadcast(own)
            if own != first:
                raise RunError(
                    f"Process {trainer.global_rank} finds {own or 'no checkpoint'} to continue from, the first process "
                    f"{first or 'none'}: the run folder must be one that all machines share."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back from Lightning, whose handler waits for the other processes and may wait for ever."""
        signals.listen()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same."""
        signals.listen()

    @contextmanager
    def together(self) -> Iterator[None]:
        """End the other processes when the block fails, and say so if it failed because one of them had ended.

        Raises:
            RunError: in place of the error of a lost connection.
        """
        complete = False
        try:
            yield
            complete = True
        except Exception as error:
            if _is_lost_connection(error):
                other = f"Another process of this run has ended; see its own message ({_short(error)})."
                raise RunError(self._ended(PATIENCE_SECONDS) or other) from error
            raise
        finally:
            self._done.set()
            if not complete:
                self._kill()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            text = self._ended(0.0)
            if text is not None:
                if not self._done.wait(PATIENCE_SECONDS):
                    print(f"Error: {text}", file=sys.stderr, flush=True)
                    self._kill()
                    os._exit(1)
                return

    def _ended(self, patience: float) -> str | None:
        """Describe the first of the watched processes that failed; wait for one for a while."""
        end = time.monotonic() + patience
        while self._processes:
            for rank, process in enumerate(self._processes, start=1):
                code = process.poll()
                if code:
                    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                    return (
                        f"Process {rank} of this run {how}, so all of it ended; the same command continues from the "
                        "last checkpoint."
                    )
            if time.monotonic() >= end:
                break
            time.sleep(POLL_SECONDS / 4)
        return None

    def _kill(self) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.kill()


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(CONNECTION_LOST.search(str(error)))


def _short(error: BaseException) -> str:
    """Gloo's message without its source file and the advice."""
    return re.sub(r"^\[[^\]]*\]\s*", "", " ".join(str(error).split())).split(". ")[0]

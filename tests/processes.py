"""Child processes in milliseconds: forked from a server that has imported the heavy packages once."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import itertools
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT = 240.0  # seconds a child may take, on a busy machine

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "pytest",
        "sklearn.datasets",
        "lightning_fisher.experiment.training.train",
        "benchmarks.contenders_step",
        "benchmarks.loop",
    ]
)


@functools.cache
def start_server() -> None:
    """Start the server where it finds this package; its children inherit that.

    There is one for all of this process, also for what the package and the benchmarks fork from it.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass
class Child:
    """A running child: its process, the file of its output, and how it ended (negative: the signal)."""

    process: BaseProcess
    log: Path
    code: int | None = None

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, signum: int, group: bool = False) -> None:
        """Send a signal to the child, or to it and everything it started (a terminal's Ctrl-C)."""
        (os.killpg if group else os.kill)(self.pid, signum)

    def wait_for(self, text: str, timeout: float = TIMEOUT) -> None:
        """Wait until the output holds ``text``."""
        end = time.monotonic() + timeout
        while text not in self.output:
            if time.monotonic() > end or not self.process.is_alive():
                code = self.wait(0)
                raise AssertionError(f"no {text!r} within {timeout} s (exit code {code}):\n{self.output}")
            time.sleep(0.02)

    def wait(self, timeout: float = TIMEOUT) -> int | None:
        """The exit code; None, and the child is killed, if it takes longer."""
        self.process.join(timeout)
        self.code = self.process.exitcode
        if self.code is None:
            self.kill()
        _running.pop(self.pid, None)
        return self.code

    def kill(self) -> None:
        """End it and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL, group=True)
        self.process.join()

    def alone(self, timeout: float = 10.0) -> bool:
        """Whether everything that the child started has ended; what has not is killed."""
        end = time.monotonic() + timeout
        try:
            while time.monotonic() < end:
                os.killpg(self.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return True
        self.kill()
        return False


def start(function: str, *args: Any, log: Path, folder: Path | None = None, env: dict[str, str] | None = None) -> Child:
    """Start ``function(*args)`` (``"package.module:name"``) in a process group of its own."""
    start_server()
    process = _context.Process(target=_run, args=(function, args, str(log), str(folder or ROOT), env or {}))
    process.start()
    child = Child(process, log)
    _running[child.pid] = child
    return child


_running: dict[int, Child] = {}


@atexit.register
def _end_what_is_left() -> None:
    """Children of tests that failed before they waited for them."""
    for child in _running.values():
        child.kill()


def _run(function: str, args: Sequence[Any], log: str, folder: str, env: dict[str, str]) -> None:
    gc.freeze()  # what the server imported: a collection would go through it, and copy it in memory
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(env)
    os.chdir(folder)
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(*args)


def execute(command: Sequence[str]) -> None:
    """Become another program: a child that imports everything itself."""
    os.execvp(command[0], list(command))


def run_ranks(function: str, world: int, folder: Path, *args: Any, timeout: float = TIMEOUT) -> list[Child]:
    """Run ``function(rank, *args)`` on ``world`` ranks and return them, ended.

    A rank that has not ended by the timeout has the exit code None.
    """
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    folder.mkdir(parents=True, exist_ok=True)
    ranks = [
        start(function, rank, *args, log=folder / f"rank{rank}.log", env=common | {"LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]
    end = time.monotonic() + timeout
    for rank in ranks:
        rank.wait(max(0.0, end - time.monotonic()))
    return ranks


_PORTS = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections
_port = itertools.cycle(random.SystemRandom().sample(_PORTS, len(_PORTS)))


def free_port() -> int:
    """A port that nothing listens on; not one of another test's a moment ago, nor, but by chance, of another process's.

    Between the answer and its use the port is free: one that the kernel chooses could be given away again by then.
    """
    for port in _port:
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise AssertionError

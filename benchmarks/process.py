"""Contenders in processes of their own, as every training is one.

In one process they change what they are compared with: the allocator keeps or returns memory depending on who ran
before, and every thread that computes brings an OpenMP team of its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType

import torch

from benchmarks.timing import Samples, interleave, seconds

Job = Callable[[ExitStack], Callable[[], object]]
"""Makes the call that is timed; picklable. What it enters in the stack is left when the process ends."""


class FailedError(RuntimeError):
    """A contender failed; the message is its error's type and first line."""


class Process:
    """A call that is prepared in a process of its own and runs there whenever it is timed.

    Args:
        job: makes the call; made and called once before this returns.
        threads: of torch's CPU kernels.
        device: where it runs.

    Raises:
        FailedError: If it fails, here or in `time`.
    """

    def __init__(self, job: Job, threads: int, device: torch.device) -> None:
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(["benchmarks.contenders_step", "benchmarks.loop"])
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, job, threads, str(device)), daemon=True)
        self._process.start()
        there.close()
        try:
            self._receive()
        except FailedError:
            self._process.join()
            raise

    def _receive(self) -> tuple[float, float]:
        try:
            found = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise FailedError(f"the process ended with exit code {self._process.exitcode}") from None
        if isinstance(found, str):
            raise FailedError(found)
        return found

    def time(self) -> tuple[float, float]:
        """Run the call; its seconds, elapsed and of the processor."""
        self._pipe.send(True)
        return self._receive()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._pipe.close()  # what it waits for never comes
        self._process.join()


def _serve(pipe: Connection, job: Job, threads: int, device: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, whose end is the end of this one
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    where = torch.device(device)
    try:
        with ExitStack() as stack:
            call = job(stack)
            gc.disable()
            gc.freeze()  # what was imported: a collection would go through it, and copy it in memory
            seconds(call, where)
            gc.freeze()
            pipe.send((0.0, 0.0))
            while True:
                try:
                    pipe.recv()
                except EOFError:
                    return
                pipe.send(seconds(call, where))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def time_apart(
    jobs: Mapping[str, Job], *, rounds: int, threads: int, device: torch.device, warmup: int = 1
) -> dict[str, Samples]:
    """`interleave` of jobs, each in a process of its own; one runs at a time."""
    with ExitStack() as stack:
        running = {name: stack.enter_context(Process(job, threads, device)) for name, job in jobs.items()}
        return interleave(running, rounds=rounds, warmup=warmup, clock=Process.time)

"""Interleaved timing: what is compared runs in turns, so that a busy machine slows everybody alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

Contender = TypeVar("Contender")


@dataclass
class Samples:
    """Seconds of one contender, one entry per round.

    Attributes:
        wall: elapsed time; on CUDA, time between two events on the stream.
        cpu: processor time of the whole process: unlike elapsed time it leaves out waiting for a busy core.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """Time relative to a baseline: median and quartiles of the ratios within a round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: list[float], baseline: list[float]) -> Ratio:
        """Ratios round by round: both ran under the same load."""
        ratios = [t / max(b, 1e-9) for t, b in zip(times, baseline, strict=True)]
        if len(ratios) < 2:
            return cls(ratios[0], ratios[0], ratios[0])
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, low, high)


def interleave(
    contenders: Mapping[str, Contender],
    *,
    clock: Callable[[Contender], tuple[float, float]],
    rounds: int,
    warmup: int = 1,
    seed: int = 0,
) -> dict[str, Samples]:
    """Time every contender once per round, in a new random order each round.

    Args:
        contenders: by name.
        clock: runs one; its seconds, elapsed and of the processor.
        rounds: timed rounds.
        warmup: rounds that are run and thrown away.
        seed: of the orders.

    Returns:
        The times of every contender, in the order of ``contenders``.
    """
    order = random.Random(seed)
    samples = {name: Samples() for name in contenders}
    for turn in range(warmup + rounds):
        for name in order.sample(list(contenders), len(contenders)):
            wall, cpu = clock(contenders[name])
            if turn >= warmup:
                samples[name].wall.append(wall)
                samples[name].cpu.append(cpu)
    return samples


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds a call takes, elapsed and of the processor.

    On CUDA the elapsed time is that between two events, with a synchronization before and after.
    """
    gc.collect()  # what one call leaves behind is not the next one's to clear
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        cpu = time.process_time()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000, time.process_time() - cpu
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch's CPU kernels on ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(samples: Mapping[str, Samples], baseline: str) -> list[dict[str, object]]:
    """One row per contender: its ratio to ``baseline``, of elapsed and of processor time, and median seconds."""
    rows: list[dict[str, object]] = []
    for name, times in samples.items():
        ratio = Ratio.of(times.wall, samples[baseline].wall)
        rows.append(
            {
                "contender": name,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "ratio_cpu": Ratio.of(times.cpu, samples[baseline].cpu).median,
                "seconds": statistics.median(times.wall),
                "rounds": len(times.wall),
            }
        )
    return rows

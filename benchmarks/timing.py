"""Interleaved timing: what is compared runs in turns, so that a busy machine slows everybody alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Samples:
    """Seconds of one contender, one entry a round.

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
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Samples]:
    """Time every contender once a round, in a new random order each round.

    Args:
        contenders: functions of nothing, by name.
        rounds: timed rounds.
        warmup: rounds that are run and thrown away.
        device: where they run. On CUDA the time is taken by events, with a synchronisation before and after.
        seed: of the orders.

    Returns:
        The times of every contender, in the order of ``contenders``.
    """
    device = torch.device(device)
    order = random.Random(seed)
    samples = {name: Samples() for name in contenders}
    with _no_garbage_collection():
        for turn in range(warmup + rounds):
            for name in order.sample(list(contenders), len(contenders)):
                wall, cpu = _time(contenders[name], device)
                if turn >= warmup:
                    samples[name].wall.append(wall)
                    samples[name].cpu.append(cpu)
    return samples


def _time(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    gc.collect()  # what one leaves behind is not the next one's to clear
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
def _no_garbage_collection() -> Iterator[None]:
    """Collect between the calls only, and quickly: what was there before is out of the collector's sight."""
    was = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


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
    """One row a contender: its ratio to ``baseline``, of elapsed and of processor time, and median seconds."""
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

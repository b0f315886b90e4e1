"""Time of a training step relative to a plain one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from benchmarks.contenders_step import BASELINE, Step, Workload, contenders
from benchmarks.networks import Network, make, random_batch
from benchmarks.process import time_apart
from benchmarks.timing import rows_of

Say = Callable[[str], None]
BATCHES = 4


def times(
    network: Network,
    *,
    batch_size: int,
    sub_batches: int,
    rounds: int,
    thread_counts: Iterable[int],
    device: torch.device,
    compile_backend: str | None,
    say: Say,
) -> list[dict[str, Any]]:
    """Time every contender on one network, in training mode, with each number of threads."""
    rows = []
    chosen = {}
    for name, contender in contenders(compile_backend).items():
        if contender.missing is not None:
            say(f"left out: {name}: {contender.missing}")
        else:
            chosen[name] = contender
    for count in thread_counts:
        jobs = {name: partial(job, name, network, batch_size, sub_batches, device, compile_backend) for name in chosen}
        samples = time_apart(jobs, rounds=rounds, threads=count, device=device, warmup=min(2, rounds - 1))
        for name, contender in chosen.items():
            samples[name].wall = [seconds / contender.steps for seconds in samples[name].wall]
            samples[name].cpu = [seconds / contender.steps for seconds in samples[name].cpu]
        settings = {"network": network.title, "threads": count, "batch_size": batch_size, "M": sub_batches}
        for row in rows_of(samples, BASELINE):
            rows.append(settings | row | {"images_per_second": batch_size / float(str(row["seconds"]))})
    return rows


def job(
    name: str,
    network: Network,
    batch_size: int,
    sub_batches: int,
    device: torch.device,
    compile_backend: str | None,
    stack: ExitStack,
) -> Step:
    """The steps of a contender that are timed together."""
    contender = contenders(compile_backend)[name]
    batches = itertools.cycle([random_batch(network, batch_size, device, seed) for seed in range(BATCHES)])
    one = contender.prepare(Workload(make(network, device).train(), batches, sub_batches, device, stack))

    def step() -> None:
        for _ in range(contender.steps):
            one()

    return step

"""What is measured in a process of its own: ``python -m benchmarks.memory_jobs '{"kind": "gram", …}'``."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders_gram import CONTENDERS, OURS
from benchmarks.contenders_step import Workload, contenders
from benchmarks.gram import prepare
from benchmarks.memory import extra_mib, in_own_process
from benchmarks.networks import NETWORKS, QUICK, Network, make, random_batch
from lightning_fisher.functional import gram_matrix

Say = Callable[[str], None]
SMALL = 4


def measure(
    network: str,
    *,
    networks: Mapping[str, Network],
    samples: int,
    batch_size: int,
    sub_batches: int,
    large: Iterable[tuple[int, int | None]],
    names: frozenset[str] | None,
    device: torch.device,
    say: Say,
) -> list[dict[str, Any]]:
    """Peak extra memory of ξ of ``samples``, of ξ of many samples in chunks, and of a training step.

    Args:
        network: its name.
        networks: `NETWORKS`, or `QUICK`.
        samples: N′ for all contenders.
        batch_size: of the step.
        sub_batches: M.
        large: ``(N′, chunk_size)`` for ours alone.
        names: contenders to measure; ``None`` for all.
        device: where.
        say: prints a line.
    """
    base = {"network": network, "quick": networks is QUICK, "device": str(device)}
    jobs = [
        base | {"kind": "gram", "contender": n, "samples": samples} for n, c in CONTENDERS.items() if not c.missing()
    ]
    jobs += [base | {"kind": "chunks", "contender": OURS, "samples": n, "chunk_size": chunk} for n, chunk in large]
    jobs += [
        base | {"kind": "step", "contender": name, "samples": batch_size, "M": sub_batches}
        for name, contender in contenders(None).items()
        if contender.missing is None
    ]
    rows = []
    for job in jobs:
        if names is None or job["contender"] in names:
            start = time.perf_counter()
            extra = in_own_process(job, say)
            if extra is not None:
                rows.append(job | {"extra_mib": extra, "process_seconds": time.perf_counter() - start})
    return rows


def run(job: dict[str, Any]) -> float:
    """The peak extra memory of one job in this process, in MiB."""
    torch.set_num_threads(1)
    device = torch.device(job["device"])
    network = (QUICK if job["quick"] else NETWORKS)[job["network"]]
    net = make(network, device)
    images, labels = random_batch(network, job["samples"], device)
    few = random_batch(network, SMALL * job.get("M", 1), device)
    if job["kind"] == "step":
        with ExitStack() as stack:
            # The first step, of a few samples, loads code and makes the optimizer's state.
            batches: Iterator[tuple[Tensor, Tensor]] = itertools.chain([few] * 2, itertools.repeat((images, labels)))
            step = contenders(None)[job["contender"]].prepare(Workload(net.train(), batches, job["M"], device, stack))
            step()
            step()
            return extra_mib(step, device)
    net.eval()
    if job["kind"] == "chunks":
        gram_matrix(net, *few)
        return extra_mib(lambda: gram_matrix(net, images, labels, chunk_size=job["chunk_size"]), device)
    prepare(job["contender"], net, *few)()
    return extra_mib(prepare(job["contender"], net, images, labels), device)


if __name__ == "__main__":
    print(json.dumps({"extra_mib": run(json.loads(sys.argv[1]))}))

"""How the costs grow: ξ with N′ and W, the regularised step with M."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks import gram
from benchmarks.contenders_gram import BASELINE as FORWARD_BACKWARD
from benchmarks.contenders_gram import OURS
from benchmarks.contenders_step import BASELINE as PLAIN
from benchmarks.contenders_step import FORMS, Workload, contenders
from benchmarks.networks import Network, make, random_batch
from benchmarks.timing import interleave, rows_of, threads
from lightning_fisher.models import resnet


def with_samples(network: Network, sizes: Iterable[int], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """ξ of N′ samples relative to forward + backward of as many."""
    net = make(network, device).eval()
    rows = []
    for size in sizes:
        rows.append(
            {"along": "N′", "value": size, "network": network.title} | _gram(net, network, size, rounds, device)
        )
    return rows


def with_parameters(
    network: Network, widths: Iterable[int], samples: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """ξ of N′ samples of ResNets of growing width, relative to forward + backward."""
    rows = []
    for width in widths:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = resnet(depth=20, width=width).to(device).eval()
        count = sum(p.numel() for p in net.parameters())
        row = _gram(net, network, samples, rounds, device)
        rows.append({"along": "W", "value": count, "network": f"ResNet-20, width {width}, N′ = {samples}"} | row)
    return rows


def _gram(net: torch.nn.Module, network: Network, samples: int, rounds: int, device: torch.device) -> dict[str, Any]:
    images, labels = random_batch(network, samples, device)
    calls = {name: gram.prepare(name, net, images, labels) for name in (FORWARD_BACKWARD, OURS)}
    return rows_of(interleave(calls, rounds=rounds, device=device), FORWARD_BACKWARD)[1]


def with_sub_batches(
    network: Network, counts: Iterable[int], batch_size: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """The forms of the regularised step with M sub-batches, relative to a plain step."""
    rows = []
    for count in counts:
        with ExitStack() as stack:
            steps = {}
            for name in (PLAIN, *FORMS):
                batches = itertools.repeat(random_batch(network, batch_size, device))
                net = copy.deepcopy(make(network, device)).train()
                steps[name] = contenders(None)[name].prepare(Workload(net, batches, count, device, stack))
            for row in rows_of(interleave(steps, rounds=rounds, device=device), PLAIN)[1:]:
                rows.append({"along": "M", "value": count, "network": f"{network.title}, batch {batch_size}"} | row)
    return rows


def times(
    network: Network,
    *,
    samples: Iterable[int],
    widths: Iterable[int],
    width_samples: int,
    sub_batches: Iterable[int],
    batch_size: int,
    rounds: int,
    device: torch.device,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """All three, on one thread."""
    with threads(1):
        rows = with_samples(network, samples, rounds, device)
        say("scaling: N′ done")
        rows += with_parameters(network, widths, width_samples, rounds, device)
        say("scaling: W done")
        return rows + with_sub_batches(network, sub_batches, batch_size, rounds, device)

"""How the costs grow: ξ with N′ and W, the regularized step with M."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import gram, step
from benchmarks.contenders_gram import BASELINE as FORWARD_BACKWARD
from benchmarks.contenders_gram import OURS
from benchmarks.contenders_step import BASELINE as PLAIN
from benchmarks.contenders_step import FORMS
from benchmarks.networks import Network, make
from benchmarks.process import time_apart
from benchmarks.timing import rows_of
from lightning_fisher.models import resnet


def with_samples(network: Network, sizes: Iterable[int], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """ξ of N′ samples relative to forward + backward of as many."""
    return [
        {"along": "N′", "value": size, "network": network.title} | _gram(network, size, rounds, device)
        for size in sizes
    ]


def with_parameters(
    network: Network, widths: Iterable[int], samples: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """ξ of N′ samples of ResNets of growing width, relative to forward + backward."""
    rows = []
    for width in widths:
        wide = replace(network, title=f"ResNet-20, width {width}", make=partial(resnet, depth=20, width=width))
        count = sum(p.numel() for p in make(wide, "meta").parameters())
        row = _gram(wide, samples, rounds, device)
        rows.append({"along": "W", "value": count, "network": f"{wide.title}, N′ = {samples}"} | row)
    return rows


def _gram(network: Network, samples: int, rounds: int, device: torch.device) -> dict[str, Any]:
    jobs = {name: partial(gram.job, name, network, samples, device) for name in (FORWARD_BACKWARD, OURS)}
    return rows_of(time_apart(jobs, rounds=rounds, threads=1, device=device), FORWARD_BACKWARD)[1]


def with_sub_batches(
    network: Network, counts: Iterable[int], batch_size: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """The forms of the regularized step with M sub-batches, relative to a plain step."""
    rows = []
    for count in counts:
        forms = [name for name, options in FORMS.items() if options.get("perturbed", 1) <= count]
        jobs = {name: partial(step.job, name, network, batch_size, count, device, None) for name in (PLAIN, *forms)}
        for row in rows_of(time_apart(jobs, rounds=rounds, threads=1, device=device), PLAIN)[1:]:
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
    rows = with_samples(network, samples, rounds, device)
    say("scaling: N′ done")
    rows += with_parameters(network, widths, width_samples, rounds, device)
    say("scaling: W done")
    return rows + with_sub_batches(network, sub_batches, batch_size, rounds, device)

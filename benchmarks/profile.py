"""Where the time of ξ goes, by kind of operation, beside forward + backward of the same samples."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders_gram import BASELINE, OURS
from benchmarks.gram import prepare
from benchmarks.networks import Network, make, random_batch
from benchmarks.timing import threads

Shapes = Sequence[Sequence[int]]

KINDS: dict[str, Callable[[str, Shapes], bool]] = {
    "convolutions, forward": lambda name, shapes: "convolution" in name and "backward" not in name,
    # Every sample is a group of its own: one image of N × C channels.
    "weight gradients of single samples: convolutions": lambda name, shapes: (
        "convolution_backward" in name and bool(shapes) and list(shapes[0])[:1] == [1]
    ),
    "weight gradients of single samples: products": lambda name, shapes: name == "aten::bmm",
    "convolutions, backward": lambda name, shapes: "convolution" in name,
    "Gram products and linear layers": lambda name, shapes: name in ("aten::mm", "aten::addmm", "aten::addmm_"),
    "batch-norm": lambda name, shapes: "batch_norm" in name,
    "copies": lambda name, shapes: name in ("aten::copy_", "aten::constant_pad_nd", "aten::fill_", "aten::zero_"),
    "activations and the rest": lambda name, shapes: True,
}
BETWEEN = "between the operations"


def kind(name: str, shapes: Shapes) -> str:
    """The first kind that fits an operation."""
    return next(title for title, fits in KINDS.items() if fits(name, shapes))


def shares(
    network: Network, *, samples: int, rounds: int, device: torch.device, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Milliseconds a kind of operation, of one call on one thread: medians over rounds.

    The profiler slows every operation down by some microseconds; ``between the operations`` holds that too.
    """
    net = make(network, device).eval()
    images, labels = random_batch(network, samples, device)
    rows = []
    with threads(1):
        for name in (BASELINE, OURS):
            call = prepare(name, net, images, labels)
            call()
            measured = [_profiled(call, device) for _ in range(rounds)]
            for title in (*KINDS, BETWEEN):
                milliseconds = statistics.median(found[title] for found in measured)
                rows.append({"network": network.title, "contender": name, "kind": title, "ms": milliseconds})
            say(f"profile: {network.title}: {name}")
    return rows


def _profiled(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize(device)
        elapsed = (time.perf_counter() - start) * 1000
    found: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.device_type == DeviceType.CPU and event.key.startswith("aten::"):
            microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
            found[kind(event.key, event.input_shapes)] += microseconds / 1000
    found[BETWEEN] = max(elapsed - sum(found.values()), 0.0)
    return found

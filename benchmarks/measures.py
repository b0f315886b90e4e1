"""The forms of γ̂ beside ξ, and what every measure of the suite takes for a network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import Network, make, random_batch
from benchmarks.timing import interleave, rows_of
from lightning_fisher.functional import fisher_log_det, layer_log_dets
from lightning_fisher.functional.measures import MEASURES
from lightning_fisher.functional.measures.registry import groups_of
from lightning_fisher.metrics import MeasureMetric

Say = Callable[[str], None]
Call = Callable[[], object]
PAPER = "γ̂ of the paper"
RESCALED = {"logit_norm": 0.04, "rank_policy": "pseudo"}


def forms(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Call]:
    """A call of every form of ``ln|ξ|``."""
    calls: dict[str, Call] = {PAPER: lambda: fisher_log_det(net, images, labels, **RESCALED)}
    for scale in ("none", "layer", "filter", "element"):
        calls[f"at equal outputs, {scale}"] = lambda scale=scale: fisher_log_det(
            net, images, labels, residual=False, scale=scale, **RESCALED
        )
    calls["layer by layer"] = lambda: layer_log_dets(net, images, labels, logit_norm=0.04)
    return calls


def form_times(network: Network, *, samples: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Time every form, in turns, relative to the paper's; on one thread."""
    net = make(network, device).eval()
    calls = forms(net, *random_batch(network, samples, device))
    common = {"network": network.title, "threads": torch.get_num_threads(), "samples": samples}
    return [common | row for row in rows_of(interleave(calls, rounds=rounds, clock=clock), PAPER)]


def clock(call: Call) -> tuple[float, float]:
    """Seconds of one call, elapsed and of the processor."""
    _synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    _synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def suite_times(
    network: Network, *, samples: int, subsets: int, device: torch.device, say: Say
) -> list[dict[str, Any]]:
    """Seconds of every measure on a network that fits its samples, from one metric over some subsets.

    What several measures share counts for the first of them, as in `MeasureMetric.seconds`.
    """
    net = make(network, device).eval()
    metric = MeasureMetric("all", initial=net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(subsets):
            say(f"measures: subset {seed + 1} of {subsets}")
            images, _ = random_batch(network, samples, device, seed)
            with torch.no_grad():
                labels = net(images).argmax(1)  # an accuracy of one, as a trained network's
            metric.update(net, images, labels)
    return [
        {
            "network": network.title,
            "samples": samples,
            "subsets": subsets,
            "measure": name,
            "groups": list(groups_of(MEASURES[name])),
            "seconds": seconds / subsets,
        }
        for name, seconds in sorted(metric.seconds.items(), key=lambda item: -item[1])
    ]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

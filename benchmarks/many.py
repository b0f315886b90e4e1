"""``ln|ξ|`` of as many samples as the paper takes, in float32, against float64."""

from __future__ import annotations

import copy
import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.exact import exact_gram
from benchmarks.memory import extra_mib
from benchmarks.networks import Network
from benchmarks.trained import enlarged_digits, train
from lightning_fisher.functional import fisher_log_det

LARGEST = 4 * 2**30  # bytes of a float64 Jacobian that is held to compare with


def digits_mlp(count: int, epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """64–64–64–10, trained by Adam on the digits as they are, 8×8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        images, labels = enlarged_digits(8, count)
        images = images[:, :1].contiguous()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(epochs):
            for chosen in torch.randperm(count).split(100):
                optimizer.zero_grad()
                F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
                optimizer.step()
    return net.eval(), images, labels


def row(title: str, net: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> dict[str, Any]:
    """Value, rank, time and memory of one network; the reference is a loop in float64 as long as J can be held."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mib = extra_mib(lambda: fisher_log_det(net, images, labels), device)
        start = time.perf_counter()
        found = fisher_log_det(net, images, labels)
        taken = time.perf_counter() - start
    loop = 8 * len(labels) * sum(p.numel() for p in net.parameters()) <= LARGEST
    start = time.perf_counter()
    if loop:
        expected = exact_gram(net, images, labels).log_det
    else:
        double = copy.deepcopy(net).double()
        expected = fisher_log_det(double, images.double(), labels, chunk_size=200).log_det.item()
    return {
        "network": title,
        "samples": len(labels),
        "parameters": sum(p.numel() for p in net.parameters()),
        "log_det": expected,
        "log_det_error": abs(found.log_det.item() - expected) / max(abs(expected), math.ulp(0.0)),
        "rank": int(found.rank),
        "repeated": any("passes in float64" in str(w.message) for w in said),
        "seconds": taken,
        "mib": mib,
        "reference": "loop" if loop else "ours in float64",
        "reference_seconds": time.perf_counter() - start,
    }


def rows(networks: list[Network], *, samples: int, epochs: int, device: torch.device) -> list[dict[str, Any]]:
    """The digits MLP, and convolutional networks trained on the same images enlarged."""
    made = [row("MLP 64–64–64–10, digits", *digits_mlp(samples, 2 * epochs), device)]
    for network in networks:
        made.append(row(network.title, *train(network, epochs=epochs, device=device, count=samples), device))
    return made

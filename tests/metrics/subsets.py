"""Subsets of one small problem, and what every metric of this package must be able to do with them."""

from __future__ import annotations

import torch
from torch import nn

N = 8


def network(dtype=torch.float64):
    """A small convolutional network with batch-norm, the same every time, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )
        net[1].running_mean.normal_(0.0, 0.3)
        net[1].running_var.uniform_(0.5, 1.5)
    return net.to(dtype)


def subsets(count, size=N, dtype=torch.float64):
    """``count`` subsets, each the same every time."""
    result = []
    for t in range(count):
        generator = torch.Generator().manual_seed(t)
        inputs = torch.randn(size, 2, 5, 5, generator=generator, dtype=torch.float64).to(dtype)
        result.append((inputs, torch.randint(3, (size,), generator=generator)))
    return result


def updated(metric, parts, module=None):
    """The metric after one update a part."""
    module = network() if module is None else module
    for inputs, targets in parts:
        metric.update(module, inputs, targets)
    return metric


def same(first, second, **tolerances):
    """Two results of ``compute`` agree key by key; ``nan`` equals ``nan``."""
    assert first.keys() == second.keys()
    options = {"rtol": 1e-12, "atol": 0.0, **tolerances}
    for key, value in first.items():
        assert value.dtype == torch.float64, key
        assert value.ndim == 0, key
        torch.testing.assert_close(value, second[key], equal_nan=True, msg=lambda m, key=key: f"{key}: {m}", **options)

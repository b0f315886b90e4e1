"""A case: how to build a module with its inputs and targets, and what is known about it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.reference.modules import with_trained_statistics


def classes(n=5, k=3, *extra):
    return lambda: torch.randint(k, (n, *extra))


def probabilities(n=5, k=3, *extra):
    return lambda: torch.softmax(torch.randn(n, k, *extra), dim=1)


def tokens(n=5, length=4, vocabulary=7):
    return lambda: torch.randint(vocabulary, (n, length))


def normal(*shape):
    return lambda: torch.randn(*shape)


class Case(NamedTuple):
    """One row of the table; 5 samples and 3 classes unless it says otherwise."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    targets: Callable[[], torch.Tensor] = classes()
    loss_fn: Callable | None = None
    full_rank: bool = True  # the rows of J are linearly independent
    train: bool = False  # handed over in training mode

    def build(self, dtype=torch.float64):
        """``(module, inputs, targets)``, the same every time; in float64 it is the float32 case, widened."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            module = with_trained_statistics(self.module())
            inputs, targets = self.inputs(), self.targets()
        return module.to(dtype).train(self.train), _to(inputs, dtype), _to(targets, dtype)


def _to(value, dtype):
    if isinstance(value, dict):
        return {key: _to(item, dtype) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_to(item, dtype) for item in value)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value

"""A case of the compatibility suite: somebody's module, its data, and what is expected of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import default_collate

BATCH, BATCHES, EPOCHS, PARTS = 10, 2, 2, 4  # sub-batches of 3, 3, 2 and 2 samples
SAMPLES = BATCH * BATCHES


class Fisher(NamedTuple):
    """How a user gives the module to the metric."""

    collate: Callable[[list[Any]], tuple[Any, Any]] = default_collate  # samples → (inputs, targets)
    select: Callable[[LightningModule], nn.Module] | None = None
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    refused: str | None = None  # what the one line says where per-sample gradients can't be had
    tried: bool = True


@dataclass(frozen=True, eq=False)
class Case:
    """One row of the table."""

    name: str
    origin: str  # whose code it is
    module: Callable[[], LightningModule]
    samples: Callable[[], list[Any]]
    loss: Callable[[Any, Any], Tensor] | None = None  # (module, batch) → mean loss, in plain torch
    collate: Callable[[list[Any]], Any] = default_collate
    fisher: Fisher = field(default_factory=Fisher)
    regularizer: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[Path], list[Callback]] = lambda folder: []
    oracle: Mapping[str, Any] = field(default_factory=dict)  # the hooks and callbacks, in the reference's words
    apart: str = "-"  # prefix of what a hook of the module moves, not the training: no matter for the oracle
    refused: str | None = None  # what the one line says where the regularizer can't work
    why: str = ""  # and why it can't be had
    tolerance: float = 1e-12

    def build(self, dtype: torch.dtype) -> tuple[LightningModule, list[Any]]:
        """``(module, samples)`` in ``dtype``, the same every time."""
        with precision(dtype), torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return _jittered(self.module()), self.samples()

    def batches(self, samples: list[Any]) -> list[Any]:
        """The batches of an epoch."""
        return [self.collate(samples[i : i + BATCH]) for i in range(0, SAMPLES, BATCH)]


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """What is made inside is made in ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _jittered(module: LightningModule) -> LightningModule:
    """Noise on parameters that start constant: zero gates and biases hide whole branches from the gradient."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.min() == parameter.max():
                parameter += 0.05 * torch.randn_like(parameter)
    return module

"""Recurrent layers that can be differentiated in evaluation mode, and twice, on a GPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def differentiable_recurrence(module: nn.Module) -> Iterator[None]:
    """Without cuDNN where a module on a GPU has recurrent layers: torch's own kernels differentiate them.

    cuDNN's refuse a backward pass in evaluation mode, and a second one in any. A backward pass takes the kernels of its
    forward pass.
    """
    recurrent = any(
        isinstance(layer, nn.RNNBase) and any(p.device.type == "cuda" for p in layer.parameters())
        for layer in module.modules()
    )
    before = torch.backends.cudnn.enabled
    try:
        if recurrent:
            torch.backends.cudnn.enabled = False
        yield
    finally:
        if recurrent:
            torch.backends.cudnn.enabled = before

"""What the tests of what is left behind train with, and what they look for."""

from __future__ import annotations

import torch

from lightning_fisher import FisherMonitor, FisherRegularizer
from tests.callbacks.tiny import image_batches

BATCHES = image_batches([8] * 4)


def regularizer():
    return FisherRegularizer(5.0, num_sub_batches=4, start=0)


def residue(module):
    """Attributes of the instance that shadow its class's methods."""
    return sorted(name for name in vars(module) if callable(getattr(type(module), name, None)))


def monitor(metrics=None):
    x, y = image_batches([12])[0]
    return FisherMonitor(torch.utils.data.TensorDataset(x, y), num_subsets=3, subset_size=4, metrics=metrics)

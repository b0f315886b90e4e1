"""The networks and batches that are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightning_fisher.models import resnet, wide_resnet, wide_resnet_imagenet


@dataclass(frozen=True)
class Network:
    """A network and the images it takes.

    Attributes:
        title: how tables name it.
        make: makes it, with random weights; picklable.
        image_size: H and W of its images; always 3 channels.
        num_classes: K.
    """

    title: str
    make: Callable[[], nn.Module]
    image_size: int
    num_classes: int = 10


NETWORKS = {
    "resnet20": Network("ResNet-20, 32×32", partial(resnet, depth=20), 32),
    "wrn28_2": Network("WRN-28-2, 32×32", partial(wide_resnet, depth=28, widen_factor=2), 32),
    "wrn18_1_5": Network("WRN-18-1.5, 128×128", wide_resnet_imagenet, 128, 1000),
}

QUICK = {
    "resnet20": Network("ResNet-8, width 4, 8×8 (quick)", partial(resnet, depth=8, width=4), 8),
    "wrn28_2": Network("WRN-10-1, 8×8 (quick)", partial(wide_resnet, depth=10, widen_factor=1), 8),
    "wrn18_1_5": Network(
        "WRN-18-0.125, 32×32 (quick)", partial(wide_resnet_imagenet, num_classes=10, widen_factor=0.125), 32
    ),
}
"""Tiny stand-ins under the same names, to try the scripts out; their numbers mean nothing."""


def make(network: Network, device: torch.device | str, seed: int = 0) -> nn.Module:
    """The network with the random weights of a seed, on a device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.make().to(device)


def random_batch(network: Network, size: int, device: torch.device | str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and labels: time and memory don't depend on their content."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, network.image_size, network.image_size, generator=generator)
    labels = torch.randint(network.num_classes, (size,), generator=generator)
    return images.to(device), labels.to(device)

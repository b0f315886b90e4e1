"""A network that is trained, quickly, on images that need no download: errors show at minima, not at random weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import Network, make
from lightning_fisher.data.sources.digits import load_digits

IMAGES = 256
BATCH = 32


def enlarged_digits(size: int, count: int = IMAGES) -> tuple[Tensor, Tensor]:
    """The training digits of scikit-learn, scaled from 8×8 to ``size`` and repeated in three channels, normalized."""
    source = load_digits().train
    chosen = torch.arange(count)
    images = source.fetch(chosen).float() / 255
    images = F.interpolate(images, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    return ((images - images.mean()) / images.std()).contiguous(), source.labels[chosen]


def train(
    network: Network, *, epochs: int, device: torch.device | str, count: int = IMAGES
) -> tuple[nn.Module, Tensor, Tensor]:
    """Train with SGD, learning rate 0.1 falling linearly to 0, batches of 32 of ``count`` enlarged digits.

    Returns:
        The network in evaluation mode, and the images and labels it was trained on.
    """
    images, labels = (t.to(device) for t in enlarged_digits(network.image_size, count))
    net = make(network, device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    steps = epochs * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(count, generator=order).to(device).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net.eval(), images, labels


@torch.no_grad()
def sharpened(net: nn.Module, images: Tensor, labels: Tensor, loss: float = 1e-6) -> nn.Module:
    """A copy whose logits are scaled up until the mean loss is just below ``loss``: the end of a long training.

    Raises:
        ValueError: if an image is misclassified: larger logits then only raise the loss.
    """
    net = copy.deepcopy(net)
    logits = net.double()(images.double())
    if not (logits.argmax(1) == labels).all():
        raise ValueError("Expected a network that fits its training images; train it for more epochs.")
    factor = 1.0
    while F.cross_entropy(factor * logits, labels) > loss:
        factor *= 1.05
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    for parameter in last.parameters():
        parameter.mul_(factor)
    return net.float()

"""A multi-layer perceptron without normalization: for methods that need one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from lightning_fisher.arguments import require_integer


def mlp(
    num_classes: int, in_channels: int, image_size: int | Sequence[int], width: int = 64, depth: int = 2
) -> nn.Module:
    """Flattened images through ``depth`` ReLU layers of ``width`` units.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        image_size: Their height and width, one number where they are square.
        width: Units of a hidden layer.
        depth: Hidden layers.

    Raises:
        ValueError: If a number doesn't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.models import mlp
        >>> mlp(10, 1, 8, width=16)(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    require_integer("width", width, least=1)
    require_integer("depth", depth, least=1)
    pixels = image_size**2 if isinstance(image_size, int) else math.prod(image_size)
    layers: list[nn.Module] = [nn.Flatten()]
    size = in_channels * pixels
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, num_classes))

"""The densely connected network DenseNet-BC of Huang et al. 2017."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_fisher.models.initialization import he_initialize


class DenseLayer(nn.Module):
    """Batch-norm, ReLU, 1x1 convolution to `4 k` channels, batch-norm, ReLU, 3x3 convolution to `k`, appended.

    Args:
        c_in: input channels.
        growth_rate: the number k of channels that are appended.
    """

    def __init__(self, c_in: int, growth_rate: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, 4 * growth_rate, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth_rate)
        self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, c_in, H, W]` to `[N, c_in + growth_rate, H, W]`."""
        h = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(h)))], dim=1)


def densenet_bc(
    *, num_classes: int = 10, in_channels: int = 3, depth: int = 100, growth_rate: int = 12
) -> nn.Sequential:
    """DenseNet-BC for small images, compression 0.5: depth 100 and k = 12 have 0.77 M parameters.

    A 3x3 convolution to `2 k` channels, three dense blocks of `(depth - 4) / 6` layers (:class:`DenseLayer`), each of
    the first two followed by a transition (batch-norm, ReLU, 1x1 convolution to half the channels, 2x2 mean), then
    batch-norm, ReLU, the mean over positions and a linear classifier. No dropout, as the paper has with augmentation.

    Args:
        num_classes: number of classes K.
        in_channels: channels C of the images.
        depth: number of layers with weights, `6 n + 4`: 10, 16, 22, 40, 100.
        growth_rate: the channels k that each layer adds.

    Returns:
        A network from float images `[N, C, H, W]`, H and W at least 4, to logits `[N, K]`.

    Raises:
        ValueError: if `depth` is not `6 n + 4` with n >= 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"Expected argument `depth` to be 6 n + 4 with n >= 1, but got {depth}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 2 * growth_rate
    layers["conv"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    for block in range(1, 4):
        for layer in range(1, (depth - 4) // 6 + 1):
            layers[f"block{block}_layer{layer}"] = DenseLayer(channels, growth_rate)
            channels += growth_rate
        if block < 3:
            layers[f"transition{block}_bn"] = nn.BatchNorm2d(channels)
            layers[f"transition{block}_relu"] = nn.ReLU()
            layers[f"transition{block}_conv"] = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers[f"transition{block}_pool"] = nn.AvgPool2d(2)
            channels //= 2
    layers["bn"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, num_classes)
    net = nn.Sequential(layers)
    he_initialize(net)
    return net

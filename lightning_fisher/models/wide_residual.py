"""The wide residual networks of Zagoruyko & Komodakis 2016."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_fisher.models.initialization import he_initialize
from lightning_fisher.models.residual import BasicBlock

_IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class PreActivationBlock(nn.Module):
    """Batch-norm, ReLU, 3x3 convolution, twice: the block B(3,3).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input (as in the authors' code);
    elsewhere it is the identity of the raw input.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, c_in, H, W]` to `[N, c_out, H / stride, W / stride]`."""
        activated = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return h + (x if self.shortcut is None else self.shortcut(activated))


def wide_resnet(
    *, num_classes: int = 10, in_channels: int = 3, depth: int = 28, widen_factor: int = 2
) -> nn.Sequential:
    """WRN-`depth`-`widen_factor`-B(3,3) for small images: WRN-28-2 has 1.47 M parameters.

    A 3x3 convolution to 16 channels, three stages of `(depth - 4) / 6` blocks with 16, 32 and 64 times
    `widen_factor` channels, the second and third stage starting with stride 2, batch-norm, ReLU, the mean over
    positions and a linear classifier. No dropout.

    Args:
        num_classes: number of classes K.
        in_channels: channels C of the images.
        depth: number of layers with weights, `6 n + 4`: 10, 16, 22, 28, 40.
        widen_factor: the factor k on the channels.

    Returns:
        A network from float images `[N, C, H, W]` to logits `[N, K]`.

    Raises:
        ValueError: if `depth` is not `6 n + 4` with n >= 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"Expected argument `depth` to be 6 n + 4 with n >= 1, but got {depth}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
    channels = 16
    for stage in range(3):
        for block in range((depth - 4) // 6):
            c_out = 16 * 2**stage * widen_factor
            stride = 2 if stage > 0 and block == 0 else 1
            layers[f"stage{stage + 1}_block{block + 1}"] = PreActivationBlock(channels, c_out, stride)
            channels = c_out
    layers["bn"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, num_classes)
    net = nn.Sequential(layers)
    he_initialize(net)
    return net


def wide_resnet_imagenet(
    *, num_classes: int = 1000, in_channels: int = 3, depth: int = 18, widen_factor: float = 1.5
) -> nn.Sequential:
    """WRN-`depth`-`widen_factor` for ImageNet: WRN-18-1.5 has 25.9 M parameters.

    The ResNet for ImageNet of He et al. 2016 with the channels of its four stages (64, 128, 256, 512) times
    `widen_factor`. The paper keeps the original order (convolution, batch-norm, ReLU) on ImageNet, and its table of
    parameters fits a first 7x7 convolution that stays at 64 channels. The size of the images is free: 128x128
    ends in 4x4 maps.

    Args:
        num_classes: number of classes K.
        in_channels: channels C of the images.
        depth: 18 or 34.
        widen_factor: the factor on the channels; 1 gives the original ResNet.

    Returns:
        A network from float images `[N, C, H, W]` to logits `[N, K]`.

    Raises:
        ValueError: if `depth` is neither 18 nor 34.
    """
    if depth not in _IMAGENET_BLOCKS:
        raise ValueError(f"Expected argument `depth` to be one of {list(_IMAGENET_BLOCKS)}, but got {depth}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    layers["bn"] = nn.BatchNorm2d(64)
    layers["relu"] = nn.ReLU()
    layers["max_pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    channels = 64
    for stage, blocks in enumerate(_IMAGENET_BLOCKS[depth]):
        for block in range(blocks):
            c_out = int(64 * 2**stage * widen_factor)
            stride = 2 if stage > 0 and block == 0 else 1
            layers[f"stage{stage + 1}_block{block + 1}"] = BasicBlock(channels, c_out, stride, "project")
            channels = c_out
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, num_classes)
    net = nn.Sequential(layers)
    he_initialize(net)
    return net

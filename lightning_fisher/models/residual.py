"""The ResNet family for small images of He et al. 2016."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_fisher.models.initialization import he_initialize


class PadShortcut(nn.Module):
    """The shortcut without parameters (option A): every `stride`-th position, missing channels filled with 0.

    Args:
        stride: spatial stride.
        missing: number of zero channels to append.
    """

    def __init__(self, stride: int, missing: int) -> None:
        super().__init__()
        self.stride = stride
        self.missing = missing

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to `[N, C + missing, ceil(H / stride), ceil(W / stride)]`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch-norm, added to the shortcut before the last ReLU.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: stride of the first convolution and of the shortcut.
        shortcut: what is added where the shape changes; `"pad"` (option A: :class:`PadShortcut`) or `"project"`
            (option B: a 1x1 convolution with batch-norm). Where the shape stays it is the identity.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, shortcut: Literal["pad", "project"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module
        if stride == 1 and c_in == c_out:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(stride, c_out - c_in)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, c_in, H, W]` to `[N, c_out, H / stride, W / stride]`."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


def resnet(*, num_classes: int = 10, in_channels: int = 3, depth: int = 20, width: int = 16) -> nn.Sequential:
    """The ResNet for CIFAR of He et al. 2016 (Sec. 4.2), option A: ResNet-20 has 0.27 M parameters.

    A 3x3 convolution, three stages of `(depth - 2) / 6` blocks with `width`, `2 width` and `4 width` channels, the
    second and third stage starting with stride 2, the mean over positions and a linear classifier.

    Args:
        num_classes: number of classes K.
        in_channels: channels C of the images.
        depth: number of layers with weights, `6 n + 2`: 8, 20, 32, 44, 56, 110.
        width: channels of the first stage (16 in the paper).

    Returns:
        A network from float images `[N, C, H, W]` to logits `[N, K]`.

    Raises:
        ValueError: if `depth` is not `6 n + 2` with n >= 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"Expected argument `depth` to be 6 n + 2 with n >= 1, but got {depth}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    layers["bn"] = nn.BatchNorm2d(width)
    layers["relu"] = nn.ReLU()
    channels = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            c_out = width * 2**stage
            stride = 2 if stage > 0 and block == 0 else 1
            layers[f"stage{stage + 1}_block{block + 1}"] = BasicBlock(channels, c_out, stride, "pad")
            channels = c_out
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, num_classes)
    net = nn.Sequential(layers)
    he_initialize(net)
    return net

"""The network of the authors' TensorFlow code in plain PyTorch layers, and their reference arrays.

Pre-activation wide ResNet: ``h = conv1(relu(bn1(x)))``, ``h = conv2(relu(bn2(h)))``, output
``h + shortcut(x)`` with the raw ``x``. Stride-2 3x3 convolutions pad the bottom and the right only (their
"same"). The arrays hold images NHWC and kernels HWIO; here everything is NCHW and OIHW.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN = (125.307, 122.95, 113.865)
STD = (62.9932, 62.0887, 66.7048)
SUFFIX = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
VARIANTS = {
    "coupled_normalised": {"batch_norm": "batch", "chunk_size": 10, "logit_norm": 0.04},
    "eval_raw": {"batch_norm": "eval", "logit_norm": None},
    "eval_normalised": {"batch_norm": "eval", "logit_norm": 0.04},
}


class Block(nn.Module):
    """Pre-activation residual block; a 1x1 convolution on the shortcut where the channels change."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(in_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1 if stride == 1 else 0, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-5)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        if in_channels != channels:
            self.downsample_conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        else:
            self.downsample_conv = nn.Identity()

    def forward(self, x):
        h = F.relu(self.bn1(x))
        if self.stride == 2:
            h = F.pad(h, (0, 1, 0, 1))
        h = self.conv1(h)
        h = self.conv2(F.relu(self.bn2(h)))
        return h + self.downsample_conv(x)


class InfoMCRNet(nn.Module):
    """``channels`` of the three stages and ``blocks`` a stage, 10 classes."""

    def __init__(self, channels, blocks):
        super().__init__()
        self.first_layer_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        width = 16
        for stage, out in enumerate(channels, start=1):
            layers = []
            for block in range(blocks):
                layers.append(Block(width, out, stride=2 if stage > 1 and block == 0 else 1))
                width = out
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(width, eps=1e-5)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.first_layer_conv(x))))
        return self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))


def torch_name(name):
    """``layer1.0.bn1.gamma`` to ``layer1.0.bn1.weight``, and so on."""
    owner, leaf = name.rsplit(".", 1)
    return f"{owner}.{ {'kernel': 'weight', 'bias': 'bias', **SUFFIX}[leaf] }"


def torch_array(name, array):
    """A weight (or its gradient) of theirs in our layout, float64."""
    tensor = torch.from_numpy(np.array(array)).double()
    if name.endswith(".kernel"):
        tensor = tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.T
    return tensor.contiguous()


class Reference:
    """The arrays of one file: the network in float64, the batches, and their results by name."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        *channels, blocks = (int(v) for v in self.arrays["layer_params"])
        self.net = InfoMCRNet(channels, blocks).double()
        weights = {k.removeprefix("weights/"): v for k, v in self.arrays.items() if k.startswith("weights/")}
        state = {torch_name(name): torch_array(name, array) for name, array in weights.items()}
        missing, unexpected = self.net.load_state_dict(state, strict=False)
        if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
            raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")

    def batch(self, group):
        """``(images [N, 3, 32, 32] float64 normalized, labels [N])`` of ``penalty`` or ``gram``."""
        images = torch.from_numpy(self.arrays[f"{group}/images"]).double()
        images = (images - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
        labels = torch.from_numpy(self.arrays[f"{group}/labels"]).long()
        return images.permute(0, 3, 1, 2).contiguous(), labels

    def scalar(self, key):
        return float(self.arrays[key])

    def tensor(self, key):
        return torch.from_numpy(self.arrays[key])

    def gradients(self, prefix):
        """Gradients by our parameter name, in our layout."""
        names = [str(name) for name in self.arrays["trainable_order"]]
        return {torch_name(name): torch_array(name, self.arrays[f"{prefix}/{name}"]) for name in names}

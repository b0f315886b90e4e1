"""The initialization that all the networks share."""

from __future__ import annotations

from torch import nn


def he_initialize(net: nn.Module) -> None:
    """Initialize a ReLU network as He et al. (2015) do, in place.

    Convolutions: zero-mean normal with variance `2 / (k² C_out)` (fan-out, the choice of the published code of
    ResNet, Wide ResNet and DenseNet). Batch-norm: scale 1, shift 0. Biases: 0. Linear weights keep PyTorch's
    uniform initialization, as there.

    Args:
        net: the network; every `nn.Conv2d`, `nn.BatchNorm2d` and `nn.Linear` in it is initialized.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)

"""The plain convolutional network: All-CNN-C with batch-norm."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lightning_fisher.models.initialization import he_initialize


def cnn(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 96,
    input_dropout: float = 0.0,
    dropout: float = 0.0,
) -> nn.Sequential:
    """All-CNN-C of Springenberg et al. 2015 (Table 1) with batch-norm: 1.37 M parameters for 10 classes.

    Three 3x3 convolutions of `width` channels, three of `2 width`, the third of each with stride 2 in place of
    pooling; a 3x3 and a 1x1 convolution of `2 width`, each followed by batch-norm and ReLU; a 1x1 convolution to
    the classes without ReLU, and the mean over positions. The last two commute, and are computed as the mean
    followed by a linear layer. All 3x3 convolutions pad by 1, so that images of any size pass.

    Args:
        num_classes: number of classes K.
        in_channels: channels C of the images.
        width: channels of the first three convolutions (96 in the paper).
        input_dropout: dropout probability on the image (0.2 in the paper; here batch-norm regularizes).
        dropout: dropout probability after each stride-2 convolution (0.5 in the paper).

    Returns:
        A network from float images `[N, C, H, W]` to logits `[N, K]`.
    """
    wide = 2 * width
    # (in, out, kernel, stride)
    plan = [
        (in_channels, width, 3, 1),
        (width, width, 3, 1),
        (width, width, 3, 2),
        (width, wide, 3, 1),
        (wide, wide, 3, 1),
        (wide, wide, 3, 2),
        (wide, wide, 3, 1),
        (wide, wide, 1, 1),
    ]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if input_dropout > 0:
        layers["input_dropout"] = nn.Dropout(input_dropout)
    for i, (c_in, c_out, kernel, stride) in enumerate(plan, start=1):
        layers[f"conv{i}"] = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(c_out)
        layers[f"relu{i}"] = nn.ReLU()
        if dropout > 0 and stride == 2:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(wide, num_classes)
    net = nn.Sequential(layers)
    he_initialize(net)
    return net

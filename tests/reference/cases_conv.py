"""Cases of convolutions: dimensions, groups, strides, dilation, padding, shapes that pick other kernels."""

from __future__ import annotations

import torch
from torch import nn

from tests.reference import modules as m
from tests.reference.case import Case, classes, normal

IMAGES, SIGNALS, VOLUMES = normal(5, 2, 6, 6), normal(5, 2, 9), normal(5, 2, 4, 4, 4)


def net(*layers, features=4):
    """Layers, a non-linearity, the mean over all positions and a classifier."""
    pool = m.Apply(lambda x: x.flatten(2).mean(2))
    return nn.Sequential(*layers, nn.Tanh(), pool, nn.Linear(features, 3))


def frames(self, x):
    """Video: the frames of all samples folded into one batch of images."""
    return self.out(torch.tanh(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]).mean((1, 3, 4)))


def conv1d(name, *args, inputs=SIGNALS, **options):
    return Case(f"conv1d_{name}", lambda: net(nn.Conv1d(2, 4, *args, **options)), inputs)


def conv2d(name, *args, inputs=IMAGES, **options):
    return Case(f"conv2d_{name}", lambda: net(nn.Conv2d(2, 4, *args, **options)), inputs)


def conv3d(name, *args, **options):
    return Case(f"conv3d_{name}", lambda: net(nn.Conv3d(2, 4, *args, **options)), VOLUMES)


CONV_CASES = [
    conv1d("padded", 3, padding=1),
    conv1d("stride_dilation", 3, stride=2, padding=2, dilation=2),
    conv1d("same_even", 4, padding="same"),
    conv1d("circular", 3, padding=2, padding_mode="circular"),
    conv2d("padded", 3, padding=1),
    conv2d("no_bias", 3, bias=False),
    conv2d("stride", 3, stride=2, padding=1),
    conv2d("stride_remainder", 2, stride=4, inputs=normal(5, 2, 7, 9)),
    conv2d("1x1", 1),
    conv2d("1x1_stride", 1, stride=2),
    conv2d("dilation", 3, padding=2, dilation=2),
    conv2d("rectangular", (3, 1), stride=(1, 2), padding=(2, 0)),
    conv2d("groups", 3, groups=2),
    conv2d("groups_stride_dilation", 2, groups=2, stride=2, dilation=2, padding=1),
    conv2d("same_even", (4, 3), padding="same", dilation=2),
    conv2d("valid", 3, padding="valid"),
    conv2d("reflect", 3, padding=(1, 2), padding_mode="reflect"),
    conv2d("replicate", 3, padding=(1, 2), padding_mode="replicate"),
    conv2d("circular", 3, padding=(1, 2), stride=2, padding_mode="circular"),
    conv2d("whole_image", 6),
    conv2d("large_map", 5, stride=3, padding=2, inputs=normal(5, 2, 24, 20)),
    conv2d("channels_last", 3, inputs=lambda: IMAGES().to(memory_format=torch.channels_last)),
    conv2d("not_contiguous", 3, inputs=lambda: normal(5, 6, 6, 2)().permute(0, 3, 2, 1)),
    conv2d("folded_size", 3, inputs=normal(5, 2, 5, 5)),
    conv3d("padded", 3, padding=1),
    conv3d("groups_stride", 2, stride=(1, 2, 2), groups=2, bias=False),
    conv3d("dilation_replicate", 2, padding=1, dilation=(1, 2, 1), padding_mode="replicate"),
    Case("conv2d_deep", lambda: net(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3)), IMAGES),
    Case(
        "conv2d_depthwise_separable",
        lambda: net(nn.Conv2d(2, 6, 3, 2, groups=2), nn.Conv2d(6, 6, 3, groups=6, padding=1), features=6),
        IMAGES,
    ),
    Case(
        "conv2d_many_channels_small_map",
        lambda: net(nn.Conv2d(2, 32, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(32, 32, 3, padding=1), features=32),
        IMAGES,
    ),
    Case("conv2d_one_sample", lambda: net(nn.Conv2d(2, 4, 3)), normal(1, 2, 6, 6), classes(1)),
    Case(
        "conv2d_frames",
        lambda: m.Lambda(frames, conv=nn.Conv2d(2, 4, 3), out=nn.Linear(4, 3)),
        normal(5, 3, 2, 5, 5),
    ),
    Case(
        "residual_relu_inplace",
        lambda: net(m.Residual(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True)), features=2),
        IMAGES,
    ),
    Case(
        "conv_transpose2d",
        lambda: net(nn.ConvTranspose2d(2, 4, 3, 2, output_padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2)),
        IMAGES,
    ),
]

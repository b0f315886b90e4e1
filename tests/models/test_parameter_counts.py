"""The number of parameters of every family against the tables of its paper."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher.models import cnn, densenet_bc, resnet, wide_resnet, wide_resnet_imagenet


def count(build, **options) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(**options).parameters())


@pytest.mark.parametrize(
    ("build", "options", "millions", "digits"),
    [
        # He et al. 2016, Table 6
        (resnet, {"depth": 20}, 0.27, 2),
        (resnet, {"depth": 32}, 0.46, 2),
        (resnet, {"depth": 44}, 0.66, 2),
        (resnet, {"depth": 56}, 0.85, 2),
        (resnet, {"depth": 110}, 1.7, 1),
        # Zagoruyko & Komodakis 2016, Tables 4 and 5 (and 1.47 for WRN-28-2)
        (wide_resnet, {"depth": 28, "widen_factor": 2}, 1.47, 2),
        (wide_resnet, {"depth": 40, "widen_factor": 1}, 0.6, 1),
        (wide_resnet, {"depth": 40, "widen_factor": 2}, 2.2, 1),
        (wide_resnet, {"depth": 40, "widen_factor": 4}, 8.9, 1),
        (wide_resnet, {"depth": 16, "widen_factor": 8}, 11.0, 1),
        (wide_resnet, {"depth": 28, "widen_factor": 10}, 36.5, 1),
        # ... and Table 7, ImageNet
        (wide_resnet_imagenet, {"depth": 18, "widen_factor": 1.0}, 11.7, 1),
        (wide_resnet_imagenet, {"depth": 18, "widen_factor": 1.5}, 25.9, 1),
        (wide_resnet_imagenet, {"depth": 18, "widen_factor": 2.0}, 45.6, 1),
        (wide_resnet_imagenet, {"depth": 18, "widen_factor": 3.0}, 101.8, 1),
        (wide_resnet_imagenet, {"depth": 34, "widen_factor": 1.5}, 48.6, 1),
        # Huang et al. 2017, Table 2
        (densenet_bc, {"depth": 100, "growth_rate": 12}, 0.8, 1),
        (densenet_bc, {"depth": 250, "growth_rate": 24}, 15.3, 1),
        (densenet_bc, {"depth": 190, "growth_rate": 40}, 25.6, 1),
        # Springenberg et al. 2015, Table 3
        (cnn, {}, 1.4, 1),
    ],
)
def test_counts_are_those_of_the_papers(build, options, millions, digits):
    assert round(count(build, **options) / 1e6, digits) == millions


def conv(c_in: int, c_out: int, kernel: int) -> int:
    return c_in * c_out * kernel**2


def bn(channels: int) -> int:
    return 2 * channels


def test_resnet20_by_hand():
    expected = conv(3, 16, 3) + bn(16) + 3 * (2 * conv(16, 16, 3) + 2 * bn(16))
    for c in (32, 64):  # option A: no parameters in the shortcut
        expected += conv(c // 2, c, 3) + conv(c, c, 3) + 2 * bn(c) + 2 * (2 * conv(c, c, 3) + 2 * bn(c))
    assert count(resnet) == expected + 64 * 10 + 10 == 269_722


def test_densenet_bc_by_hand():
    expected, channels = conv(3, 24, 3), 24
    for block in range(3):
        for _ in range(16):
            expected += bn(channels) + conv(channels, 48, 1) + bn(48) + conv(48, 12, 3)
            channels += 12
        if block < 2:
            expected += bn(channels) + conv(channels, channels // 2, 1)
            channels //= 2
    assert count(densenet_bc) == expected + bn(channels) + channels * 10 + 10 == 769_162


def test_cnn_by_hand():
    expected = conv(3, 96, 3) + 2 * conv(96, 96, 3) + conv(96, 192, 3) + 3 * conv(192, 192, 3) + conv(192, 192, 1)
    assert count(cnn) == expected + 3 * bn(96) + 5 * bn(192) + 192 * 10 + 10 == 1_370_986


def test_classes_and_channels_count():
    assert count(resnet, num_classes=100) - count(resnet) == 90 * 65
    assert count(wide_resnet) - count(wide_resnet, in_channels=1) == 2 * 9 * 16

"""Shapes, memory formats and the wiring of the blocks against plain functional code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_fisher.models import cnn, densenet_bc, resnet, wide_resnet, wide_resnet_imagenet
from lightning_fisher.models.densenet import DenseLayer
from lightning_fisher.models.residual import BasicBlock
from lightning_fisher.models.wide_residual import PreActivationBlock

SMALL = [
    (cnn, {"width": 8}),
    (resnet, {"depth": 8, "width": 4}),
    (wide_resnet, {"depth": 10, "widen_factor": 1}),
    (densenet_bc, {"depth": 10, "growth_rate": 4}),
    (wide_resnet_imagenet, {"depth": 18, "widen_factor": 0.125}),
]
each_small = pytest.mark.parametrize(("build", "options"), SMALL, ids=[build.__name__ for build, _ in SMALL])


@each_small
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 64)])
def test_logits_of_any_image_size(build, options, channels, size):
    net = build(num_classes=7, in_channels=channels, **options)
    assert net(torch.randn(3, channels, size, size)).shape == (3, 7)


@each_small
def test_channels_last_gives_the_same_logits(build, options):
    torch.manual_seed(0)
    net = build(**options).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = net.eval()(images)
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(images.to(memory_format=torch.channels_last)), expected)


@each_small
def test_every_parameter_gets_a_gradient(build, options):
    torch.manual_seed(0)
    net = build(**options)
    F.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@each_small
def test_he_initialization(build, options):
    torch.manual_seed(0)
    net = build(num_classes=10, **options)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        assert module.bias is None
        fan_out = module.out_channels * module.kernel_size[0] ** 2
        # The weights are normal: their sample standard deviation is within 6 of its own standard errors.
        assert module.weight.std().item() == pytest.approx(
            (2 / fan_out) ** 0.5, rel=6 / (2 * module.weight.numel()) ** 0.5
        )
    assert not net.classifier.bias.any()


def test_full_size_maps():
    """The classifier of the papers' nets sees 8x8 maps of CIFAR images, 4x4 of 128x128 ImageNet."""
    for net, size, expected in [
        (resnet(), 32, (64, 8, 8)),
        (cnn(width=4), 32, (8, 8, 8)),
        (wide_resnet(depth=10), 32, (128, 8, 8)),
        (densenet_bc(depth=10), 32, (27, 8, 8)),
        (wide_resnet_imagenet(widen_factor=0.25), 128, (128, 4, 4)),
    ]:
        features = net[: list(dict(net.named_children())).index("pool")]
        assert features(torch.randn(1, 3, size, size)).shape[1:] == expected


def randomize_batch_norm(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def batch_norm(x, bn):
    shape = (1, -1, 1, 1)
    scale = bn.weight.view(shape) / (bn.running_var.view(shape) + 1e-5).sqrt()
    return (x - bn.running_mean.view(shape)) * scale + bn.bias.view(shape)


def evaluated(block: nn.Module) -> nn.Module:
    randomize_batch_norm(block)
    return block.double().eval()


def test_basic_block_option_a():
    torch.manual_seed(0)
    block = evaluated(BasicBlock(3, 6, 2, "pad"))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    h = batch_norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
    h = batch_norm(F.conv2d(h, block.conv2.weight, padding=1), block.bn2)
    h[:, :3] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), h.clamp(min=0))


def test_basic_block_option_b():
    torch.manual_seed(0)
    block = evaluated(BasicBlock(3, 6, 2, "project"))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    h = batch_norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
    h = batch_norm(F.conv2d(h, block.conv2.weight, padding=1), block.bn2)
    h = h + batch_norm(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
    torch.testing.assert_close(block(x), h.clamp(min=0))


@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(4, 4, 1), (4, 6, 2), (4, 6, 1)])
def test_pre_activation_block(c_in, c_out, stride):
    torch.manual_seed(0)
    block = evaluated(PreActivationBlock(c_in, c_out, stride))
    x = torch.randn(2, c_in, 8, 8, dtype=torch.float64)
    activated = batch_norm(x, block.bn1).clamp(min=0)
    h = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    h = F.conv2d(batch_norm(h, block.bn2).clamp(min=0), block.conv2.weight, padding=1)
    shortcut = x if c_in == c_out else F.conv2d(activated, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), h + shortcut)


def test_dense_layer_appends():
    torch.manual_seed(0)
    layer = evaluated(DenseLayer(5, 3))
    x = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    h = F.conv2d(batch_norm(x, layer.bn1).clamp(min=0), layer.conv1.weight)
    h = F.conv2d(batch_norm(h, layer.bn2).clamp(min=0), layer.conv2.weight, padding=1)
    assert layer.conv1.out_channels == 12
    torch.testing.assert_close(layer(x), torch.cat([x, h], dim=1))


def test_cnn_averages_the_class_maps():
    """The mean and then the linear layer is what Springenberg's 1x1 convolution and then the mean is."""
    torch.manual_seed(0)
    net = cnn(width=4).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = net[: list(dict(net.named_children())).index("pool")](images)
    maps = F.conv2d(features, net.classifier.weight[:, :, None, None], net.classifier.bias)
    torch.testing.assert_close(net(images), maps.mean(dim=(2, 3)))


def test_cnn_dropout():
    layers = [
        (name, module.p) for name, module in cnn(input_dropout=0.2, dropout=0.5).named_children() if "drop" in name
    ]
    assert layers == [("input_dropout", 0.2), ("dropout3", 0.5), ("dropout6", 0.5)]
    assert not any(isinstance(module, nn.Dropout) for module in cnn().modules())


@pytest.mark.parametrize(
    ("build", "depth", "message"),
    [
        (resnet, 18, "Expected argument `depth` to be 6 n \\+ 2 with n >= 1, but got 18"),
        (resnet, 2, "but got 2"),
        (wide_resnet, 26, "Expected argument `depth` to be 6 n \\+ 4 with n >= 1, but got 26"),
        (densenet_bc, 4, "but got 4"),
        (wide_resnet_imagenet, 50, "Expected argument `depth` to be one of \\[18, 34\\], but got 50"),
    ],
)
def test_impossible_depths_are_refused(build, depth, message):
    with pytest.raises(ValueError, match=message):
        build(depth=depth)

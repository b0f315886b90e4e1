"""Networks and images that are channels-last have the ξ of those that aren't."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from lightning_fisher.models import densenet_bc, resnet
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian

NETS = {
    "strides": lambda: nn.Sequential(
        nn.Conv2d(3, 5, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.Conv2d(5, 6, 1, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=True), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
    ),
    "resnet": lambda: resnet(depth=8, width=4),
    "densenet": lambda: densenet_bc(depth=10, growth_rate=3),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("weights", [False, True], ids=["images", "images and weights"])
def test_gram_matrix(name, weights):
    torch.manual_seed(0)
    net, inputs, targets = NETS[name]().double(), torch.randn(5, 3, 12, 12).double(), torch.arange(5) % 3
    net(inputs)  # running statistics that aren't 0 and 1
    expected = gram(jacobian(net, inputs, targets))
    if weights:
        net = net.to(memory_format=torch.channels_last)
    found = gram_matrix(net, inputs.contiguous(memory_format=torch.channels_last), targets)
    assert gram_error(found, expected) < 1e-11

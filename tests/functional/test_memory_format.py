"""Images are laid out channels last for the passes, whatever the module makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.memory_format import channels_last, channels_last_pays
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian


class Net(nn.Module):
    """Flattens its maps in one of several ways."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.norm, self.flatten = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), flatten
        self.out = nn.Linear(5 * 4 * 4, 4)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.out(self.flatten(torch.tanh(self.norm(self.conv(x)))))


def by_view(maps):
    return maps.view(maps.shape[0], -1)  # fails channels last


def by_strides(maps):
    return maps.as_strided((maps.shape[0], 80), (80, 1))  # another order of the numbers, silently


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(6, 3, 6, 6), torch.arange(6) % 4


@pytest.mark.parametrize("flatten", [nn.Flatten(), by_view, by_strides], ids=["reshape", "view", "as_strided"])
@pytest.mark.parametrize("double", [False, True])
def test_the_gram_matrix_is_that_of_the_module_as_it_is(flatten, double, batch):
    net, (inputs, targets) = Net(flatten), batch
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    expected = gram(jacobian(net, inputs, targets))
    if double:
        net, inputs = net.double(), inputs.double()
    net.seen.clear()
    assert gram_error(gram_matrix(net, inputs, targets), expected) < (1e-12 if double else 1e-5)
    assert any(net.seen)
    assert inputs.is_contiguous()


def test_a_tensor_of_other_inputs_is_left_alone(batch):
    images, labels = batch
    weights = [torch.zeros(2, 3, 3, 3)]
    tree = {"images": (images, labels), "words": torch.zeros(6, 4), "masks": torch.zeros(6, 3, 6, 6, dtype=torch.bool)}
    found = channels_last(tree, weights)
    assert found["images"][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found["images"][0], images)
    assert found["images"][1] is labels
    assert found["words"] is tree["words"]
    assert found["masks"] is tree["masks"]


@pytest.mark.parametrize(
    ("inputs", "weights"),
    [
        (torch.zeros(6, 4), [torch.zeros(2, 3, 3, 3)]),
        (torch.zeros(6, 3, 6, 6), [torch.zeros(2, 3)]),
        (torch.zeros(6, 3, 6, 6).contiguous(memory_format=torch.channels_last), [torch.zeros(2, 3, 3, 3)]),
        (torch.zeros(6, 3, 6, 6, device="meta"), [torch.zeros(2, 3, 3, 3, device="meta")]),
    ],
    ids=["no images", "no convolution", "channels last already", "another device"],
)
def test_nothing_to_gain(inputs, weights):
    assert channels_last(inputs, weights) is None


NARROW, WIDE = (
    (torch.Size([64, 64, 3, 3]), torch.Size([9, 64, 16, 16])),
    (torch.Size([512, 512, 3, 3]), torch.Size([9, 512, 2, 2])),
)


@pytest.mark.parametrize(
    ("convolutions", "pays"),
    [
        ([NARROW], True),
        ([WIDE], False),
        ([NARROW, WIDE], False),
        ([NARROW] * 11 + [WIDE], True),
        ([(torch.Size([512, 1, 3, 3]), WIDE[1])], True),  # one group a channel
        ([(torch.Size([64, 64, 3]), torch.Size([9, 64, 30]))], False),  # one dimension
        ([], False),
    ],
    ids=["narrow", "wide", "as much of both", "mostly narrow", "depthwise", "1d", "none"],
)
def test_when_it_pays(convolutions, pays):
    assert channels_last_pays(convolutions) is pays


def test_wide_layers_on_small_maps_run_as_they_are():
    torch.manual_seed(0)
    seen = []
    conv = nn.Conv2d(256, 256, 3, padding=1)
    conv.register_forward_pre_hook(lambda layer, args: seen.append((len(args[0]), args[0].is_contiguous())))
    net = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 3))
    inputs, targets = torch.randn(5, 256, 2, 2), torch.arange(5) % 3
    assert gram_error(gram_matrix(net, inputs, targets), gram(jacobian(net, inputs, targets))) < 1e-5
    assert (5, True) in seen
    assert (5, False) not in seen

"""Networks for the measures of generalization, and rescalings that leave what they compute unchanged."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tests.reference.measures import network, samples


class NetworkC(nn.Module):
    """A pre-activation residual block, max-pooling and two linear layers; one batch-norm of three can be folded."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn3, self.pool = nn.BatchNorm2d(3), nn.MaxPool2d(2)
        self.fc1, self.fc = nn.Linear(27, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv0(x)
        x = x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))
        x = self.pool(torch.relu(self.bn3(x)))
        return self.fc(torch.relu(self.fc1(x.flatten(1))))


class Smooth(nn.Module):
    """Tanh, layer norm and a layer that is used twice: not piecewise linear."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.norm, self.last = (
            nn.Linear(5, 6),
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.last(self.norm(torch.tanh(self.twice(torch.tanh(self.twice(x))))))


class NetworkD(nn.Module):
    """Convolutions without biases, batch-norm with and without weights, ten classes, a dead unit and an idle one."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 2, stride=2, bias=False), nn.BatchNorm2d(3, affine=False)
        self.fc1, self.fc = nn.Linear(12, 7), nn.Linear(7, 10)
        with torch.no_grad():
            self.fc1.weight[2].zero_()
            self.fc1.bias[2] = -5.0
            self.fc.weight[:, 4].zero_()

    def forward(self, x):
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.relu(self.fc1(x.flatten(1))))


def build(name):
    """``(network, inputs, targets, initial network)`` in float64, the same every time: a, b, c, d or smooth."""
    if name in ("a", "b"):
        return network(name), *samples(name), network(name, "init")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net, initial = [{"c": NetworkC, "d": NetworkD, "smooth": Smooth}[name]().double().eval() for _ in range(2)]
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0.0, 0.3)
        inputs = torch.randn(40, *((1, 6, 6) if name in ("c", "d") else (5,)), dtype=torch.float64)
    with torch.no_grad():
        nn.Module.__getattr__(net, "last" if name == "smooth" else "fc").weight.mul_(8)
        logits = net(inputs)
    targets = (logits - logits.mean(0)).argmax(1)
    with torch.no_grad():
        nn.Module.__getattr__(net, "last" if name == "smooth" else "fc").bias.sub_(logits.mean(0))
    targets[:2] = (targets[:2] + 1) % logits.shape[1]  # two are misclassified
    return net, inputs, targets, initial


def rescaled(name, net):
    """Copies that compute the same, by the kind of rescaling; ``logits``: twice the logits."""
    return {kind: change(copy.deepcopy(net)) for kind, change in KINDS[name].items()}


def _factors(count):
    return torch.linspace(0.3, 4.0, count, dtype=torch.float64)


@torch.no_grad()
def _between(net, first, second, factors):
    """The outputs of ``first`` times ``factors``, the matching inputs of ``second`` divided by them."""
    for parameter in getattr(net, first).parameters():
        parameter.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))
    weight = getattr(net, second).weight
    weight.div_(factors.view(1, -1, *[1] * (weight.ndim - 2)))
    return net


@torch.no_grad()
def _in_front_of_batch_norm(net, layer, norm, factor=4.0):
    for parameter in getattr(net, layer).parameters():
        parameter.mul_(factor)
    norm = getattr(net, norm)
    norm.running_mean.mul_(factor)
    norm.running_var.copy_(factor**2 * (norm.running_var + norm.eps) - norm.eps)
    return net


@torch.no_grad()
def _logits(net, layer):
    for parameter in getattr(net, layer).parameters():
        parameter.mul_(2)
    return net


def _units_a(net):
    return _between(_between(net, "fc1", "fc2", _factors(16)), "fc2", "fc3", _factors(16).flip(0))


def _layers_c(net):
    return _between(_between(net, "fc1", "fc", torch.full((6,), 4.0)), "bn1", "conv1", torch.full((3,), 4.0))


def _units_c(net):
    return _between(_between(net, "fc1", "fc", _factors(6)), "bn1", "conv1", _factors(3))


KINDS = {
    "a": {
        "layers": lambda net: _between(net, "fc1", "fc2", torch.full((16,), 4.0)),
        "units": _units_a,
        "logits": lambda net: _logits(net, "fc3"),
    },
    "b": {
        "layers": lambda net: _between(net, "bn1", "conv2", torch.full((4,), 4.0)),
        "units": lambda net: _between(net, "bn1", "conv2", _factors(4)),
        "batch_norm": lambda net: _in_front_of_batch_norm(net, "conv1", "bn1"),
        "logits": lambda net: _logits(net, "fc"),
    },
    "c": {
        "layers": _layers_c,
        "units": _units_c,
        "batch_norm": lambda net: _in_front_of_batch_norm(net, "conv1", "bn2"),
        "logits": lambda net: _logits(net, "fc"),
    },
}

"""A second problem for the methods: another network and data than that of the public codes, and formulas by hand.

Strided and grouped convolutions, batch-norm with another momentum, layer norm, dropout that is off, a parameter without
a gradient, a frozen one, weights that are exactly zero; SGD with momentum and weight decay; the last batch is smaller.
Each rule returns the gradient that a method hands to the optimizer. Nothing here is the package's.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

RATE, MOMENTUM, DECAY = 0.07, 0.8, 0.02
SIZES = (12, 12, 12, 11)
CLASSES = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 5, 3, padding=1, stride=2), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False), nn.BatchNorm2d(5, momentum=0.3)
        self.fc1, self.layer, self.drop = nn.Linear(80, 9), nn.LayerNorm(9), nn.Dropout(0.0)
        self.fc2 = nn.Linear(9, CLASSES)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(9), requires_grad=False)

    def forward(self, x):
        x = F.gelu(self.norm1(self.conv1(x)))
        x = F.silu(self.norm2(self.conv2(x))).flatten(1)
        return self.fc2(self.drop(self.layer(torch.tanh(self.fc1(x)) * self.frozen)))


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = Net().double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
            net.fc1.weight[0].zero_()
    return net.train()


def batches():
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(sum(SIZES), 2, 7, 7, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (sum(SIZES),), generator=generator)
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


def trained(net):
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def gradient(net, loss, graph=False):
    variables = [p for _, p in trained(net)]
    found = torch.autograd.grad(loss, variables, allow_unused=True, create_graph=graph)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(variables, found, strict=True)]


def here(net, x, y):
    """The gradient at w; moves the batch-norm statistics."""
    return gradient(net, F.cross_entropy(net(x), y))


def there(net, step, x, y):
    """The gradient at w + step, on a copy."""
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for (_, p), e in zip(trained(moved), step, strict=True):
            p += e
    return here(moved, x, y)


def length(tensors):
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))


def plain(net, x, y):
    return here(net, x, y)


def sharpness_aware(rho, scale=None, parts=1, share=1.0):
    """(1 − share) ∇L(w) + share ∇L(w + ρ T² g/‖T g‖), the mean over consecutive parts weighted by size."""

    def rule(net, x, y):
        total = None
        for xi, yi in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            before = copy.deepcopy(net)
            g = here(net, xi, yi)
            t = [torch.ones_like(p) if scale is None else scale(name, p.detach()) for name, p in trained(net)]
            size = length([a * b for a, b in zip(t, g, strict=True)]) + 1e-12
            h = there(before, [rho * a * a * b / size for a, b in zip(t, g, strict=True)], xi, yi)
            found = [len(yi) / len(y) * ((1 - share) * a + share * b) for a, b in zip(g, h, strict=True)]
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        return total

    return rule


def geiping(strength, eps, parts, places):
    """The mean of g + η/4 (difference of gradients along s g)/h with h = ε/‖s g‖, η the learning rate."""

    def rule(net, x, y):
        total = None
        for xi, yi in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            before = copy.deepcopy(net)
            g = here(net, xi, yi)
            v = [strength * t for t in g]
            h = eps / length(v)
            ends = [g if c == 0 else there(before, [c * h * t for t in v], xi, yi) for c in places]
            found = [len(yi) / len(y) * (a + RATE / 4 * (b - c) / h) for a, b, c in zip(g, *ends, strict=True)]
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        return total

    return rule


def algorithm1(beta, alpha, parts, places):
    """∇L + β Σ n_i/N (difference of gradients along α g_i), statistics of batch-norm moved by the whole batch only."""

    def rule(net, x, y):
        penalty = None
        for xi, yi in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            g = here(copy.deepcopy(net), xi, yi)
            ends = [g if c == 0 else there(net, [c * alpha * t for t in g], xi, yi) for c in places]
            found = [len(yi) / len(y) * (a - b) for a, b in zip(*ends, strict=True)]
            penalty = found if penalty is None else [a + b for a, b in zip(penalty, found, strict=True)]
        return [a + beta * b for a, b in zip(here(net, x, y), penalty, strict=True)]

    return rule


def jacobian(weight):
    """∇(L + λ/(2N) Σ ‖∂z/∂x‖²) by one backward pass an output."""

    def rule(net, x, y):
        x = x.clone().requires_grad_()
        outputs = net(x)
        rows = [torch.autograd.grad(outputs[:, k].sum(), x, create_graph=True)[0] for k in range(CLASSES)]
        penalty = sum(row.square().sum() for row in rows) / (2 * len(x))
        return gradient(net, F.cross_entropy(outputs, y) + weight * penalty)

    return rule


def train(rule):
    """SGD by hand; a parameter without a gradient isn't stepped."""
    net, velocity = network(), {}
    for x, y in batches():
        found = rule(net, x, y)
        with torch.no_grad():
            for (name, p), g in zip(trained(net), found, strict=True):
                if name == "unused":
                    continue
                d = g + DECAY * p
                velocity[name] = d if name not in velocity else MOMENTUM * velocity[name] + d
                p -= RATE * velocity[name]
    return net

"""A step of training with the penalty, by plain autograd in float64, and what a fit makes of the same step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.multipass.manual.loops import add_penalty
from tests.callbacks.tiny import seeded

BETA, ALPHA, PARTS = 1e3, 1e-3, 4
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(64) % 3


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


class Plain(LightningModule):
    """Cross-entropy of a small network, by gradient descent."""

    def __init__(self):
        super().__init__()
        self.net = seeded(network)
        self.prepare()

    def prepare(self):
        pass

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(size=16, count=64):
    return DataLoader(TensorDataset(X[:count], Y[:count]), size)


def batches(size=16, count=64):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, count, size)]


def parts_of(batch, count=PARTS):
    size = len(batch[1]) // count
    return [tuple(t[i * size : (i + 1) * size] for t in batch) for i in range(count)]


def with_penalty(loss_of, parts, whole, parameters, beta=BETA):
    """Leave the gradients of ``L + β R`` in ``.grad``; returns R."""
    parameters = list(parameters)
    for p in parameters:
        p.grad = None
    value = add_penalty(loss_of, parts, parameters, beta, ALPHA)
    found = torch.autograd.grad(loss_of(whole), parameters, allow_unused=True)
    for p, g in zip(parameters, found, strict=True):
        p.grad = p.grad if g is None else p.grad + g
    return value


def descend(module, trained, data, beta=BETA, lr=0.1):
    """Gradient descent on ``L + β R``; ``trained(number of the batch)``: the parameters of this step."""
    for number, batch in enumerate(data):
        parameters = list(trained(number))
        with_penalty(lambda part: F.cross_entropy(module.net(part[0]), part[1]), parts_of(batch), batch, parameters)
        with torch.no_grad():
            for p in parameters:
                p.sub_(lr * p.grad)
    return module


class Gradients(Callback):
    """Those that the optimizer steps on, by name, a dictionary a step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})


def assert_gradients(found, module, tolerance=1e-10):
    """Of a fit and of the oracle, which left them in ``module``; relative to the largest of the penalty's size."""
    expected = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    size = max(g.abs().max() for g in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * size, name


def assert_weights(module, expected, tolerance=1e-10):
    for (name, a), b in zip(module.named_parameters(), expected.parameters(), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max(), name


def same_bits(a, b):
    """Of two recorded runs."""
    return all(torch.equal(x[key], y[key]) for x, y in zip(a.states, b.states, strict=True) for key in y)

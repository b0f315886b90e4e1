"""The penalty of a step that draws from generators of its own, or changes weights itself, against plain autograd."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_fisher import FisherRegularizer
from tests.callbacks.multipass.oracle import (
    ALPHA,
    BETA,
    PARTS,
    Gradients,
    Plain,
    assert_gradients,
    batches,
    parts_of,
    with_penalty,
)


class Noisy(Plain):
    """Noise on the inputs; every pass of a step draws the same, as if the generator were new."""

    def __init__(self, make, draw):
        self.make, self.draw = make, draw
        super().__init__()

    def prepare(self):
        self.source = self.make()

    def training_step(self, batch, batch_idx):
        noise = torch.as_tensor(self.draw(self.source, tuple(batch[0].shape)))
        return F.cross_entropy(self.net(batch[0] + 0.3 * noise), batch[1])


SOURCES = {
    "bit generator": (lambda: np.random.PCG64(0), lambda g, shape: np.random.Generator(g).normal(size=shape)),
    "spawned": (lambda: np.random.default_rng(0), lambda g, shape: g.spawn(1)[0].normal(size=shape)),
    "python's": (lambda: [random.Random(0)], lambda g, shape: g[0].gauss(0, 1)),
    "torch's": (lambda: (torch.Generator().manual_seed(0),), lambda g, shape: torch.randn(shape, generator=g[0])),
    "quasi-random": (lambda: torch.quasirandom.SobolEngine(6), lambda g, shape: g.draw(shape[0])),
}


@pytest.mark.parametrize("name", SOURCES)
def test_draws(fit, name):
    gradients, expected = Gradients(), Noisy(*SOURCES[name])
    regularizer = FisherRegularizer(BETA, alpha=ALPHA, num_sub_batches=PARTS, start=0)
    fit(Noisy(*SOURCES[name]), batches()[:1], regularizer, gradients)

    def loss(part):
        expected.prepare()
        return expected.training_step(part, 0)

    with_penalty(loss, parts_of(batches()[0]), batches()[0], expected.parameters())
    assert_gradients(gradients.steps[0], expected)


class Moves(Plain):
    """Changes weights at the beginning of the step: its own, or those of a target network."""

    def __init__(self, change):
        self.change = change
        super().__init__()

    def prepare(self):
        self.target = copy.deepcopy(self.net)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.change(self, batch)
        with torch.no_grad():
            aim = self.target(batch[0])
        return super().training_step(batch, batch_idx) + F.mse_loss(self.net(batch[0]), aim)


@torch.no_grad()
def follow(module, batch):
    torch._foreach_lerp_(list(module.target.parameters()), list(module.net.parameters()), 0.05)


@torch.no_grad()
def limit_norms(module, batch):
    module.net[0].weight.renorm_(2, 0, 0.3)


@torch.no_grad()
def revive(module, batch):
    module.net[0].weight[2] = 0.1 * batch[0][0]


def normalize_data(module, batch):
    module.net[2].weight.data = F.normalize(module.net[2].weight.data, dim=1)


@pytest.mark.parametrize("change", [follow, limit_norms, revive, normalize_data], ids=lambda change: change.__name__)
def test_weights_that_the_step_changes(fit, change):
    """Every pass changes them from where they were; the gradients are those behind the change."""
    gradients = Gradients()
    regularizer = FisherRegularizer(BETA, alpha=ALPHA, num_sub_batches=PARTS, start=0)
    fit(Moves(change), batches()[:1], regularizer, gradients)
    expected = Moves(change)

    def loss(part):
        """Of a copy that changes itself; as a function of the weights before the change, by its gradient behind it."""
        one = copy.deepcopy(expected)
        value = one.training_step(part, 0)
        found = torch.autograd.grad(value, list(one.net.parameters()))
        pairs = zip(expected.net.parameters(), found, strict=True)
        return value.detach() + sum(((p - p.detach()) * g).sum() for p, g in pairs)

    with_penalty(loss, parts_of(batches()[0]), batches()[0], expected.net.parameters())
    assert_gradients(gradients.steps[0], expected)

"""A network whose penalty explodes where it is told to, and the plain loop that trains as the callback should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded, sgd
from tests.reference.losses import batch_loss
from tests.reference.penalty import penalty
from tests.reference.regularized_training import snapshot

M, BETA = 4, 50.0
WARNING = "left out the penalty"
FORMS = pytest.mark.parametrize("form", ["full", "shared"])


def regularizer(beta=BETA, **options):
    return FisherRegularizer(beta, num_sub_batches=M, start=0, **options)


class Cliff(nn.Module):
    """The MLP at ``u = 0``; samples with a pixel above 40 move u so far that the loss at ``w − α g`` is nan."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.u = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        steep = 1e6 * (x[:, 0, 0, 0] > 40).to(x) * self.u + torch.log(1 - self.u**2)
        return self.net(x) + steep[:, None] * torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype)


def without_u(parameters):
    """An optimizer that has ``u``, so that it is perturbed, and leaves it where it is."""
    parameters = list(parameters)
    u = {"params": [p for p in parameters if not p.ndim], "lr": 0.0, "weight_decay": 0.0}
    return sgd([{"params": [p for p in parameters if p.ndim]}, u])


def batches(steep):
    """Six batches; those in ``steep`` explode at ``w − α g``."""
    made = image_batches([16] * 6)
    for index, (x, _) in enumerate(made):
        if index in steep:
            x[5, 0, 0, 0] = 50.0
    return made


def cliff():
    return Classifier(seeded(Cliff), optimizer=without_u)


def loop(net, data, optimizer, penalized=lambda batch: True, before_batch=lambda net, batch: None):
    """A plain float64 loop; batches that aren't ``penalized`` are plain steps. Returns the states after each batch."""
    net = net.double().train()
    opt, states = optimizer(net.parameters()), []
    for batch, (x, y) in enumerate(data):
        before_batch(net, batch)
        extra = penalty(net, x, y, alpha=1e-4, num_sub_batches=M)[1] if penalized(batch) else None
        opt.zero_grad()
        batch_loss(net(x.double()), y).backward()
        for index, parameter in enumerate(net.parameters()):
            if parameter.grad is not None and extra is not None:
                parameter.grad += BETA * extra[index]
        opt.step()
        states.append(snapshot(net))
    return states

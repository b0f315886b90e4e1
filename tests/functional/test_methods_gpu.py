"""The other training methods on a GPU (`pytest -m gpu`): the same numbers as on the CPU in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import (
    difference_penalty_gradient,
    fisher_penalty_gradient,
    flat_minimum_penalty,
    gradient_norm_penalty_gradient,
    jacobian_penalty,
    large_margin_loss,
    sharpness_aware_gradient,
)
from lightning_fisher.layers import convert_ghost_batch_norm
from lightning_fisher.optimizers import EntropySGD, PathSGD
from tests.functional.compare import flat, relative_error
from tests.reference.methods import batches, network

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.gpu
LABELS = torch.arange(16) % 5


def margin(net, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(large_margin_loss(net(x), y, x, differentiate_norm=True), list(net.parameters()))


def jacobian(net, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(jacobian_penalty(net(x), x, None), list(net.parameters()), materialize_grads=True)


def flat_minimum(net, x, y):
    value = flat_minimum_penalty(net, x)
    return torch.autograd.grad(value, list(net.parameters()), allow_unused=True, materialize_grads=True)


def entropy(net, x, y):
    optimizer = EntropySGD(net.parameters(), lr=0.1, noise=0.0)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return [p.detach() for p in net.parameters()]


def path(net, x, y):
    optimizer = PathSGD(net.parameters(), lr=0.01, model=net, momentum=0.9)
    cross_entropy(net(x), y).backward()
    optimizer.step()
    return [p.detach() for p in net.parameters()]


def ghost(net, x, y):
    return [convert_ghost_batch_norm(net, 4)(x).detach(), *net.buffers()]


FUNCTIONS = {
    "sam": ("conv", lambda net, x, y: sharpness_aware_gradient(net, x, y, adaptive=True, num_sub_batches=2).gradient),
    "gnp": ("conv", lambda net, x, y: gradient_norm_penalty_gradient(net, x, y).gradient),
    "fisher": ("conv", lambda net, x, y: fisher_penalty_gradient(net, x, y, labels=LABELS.to(x.device)).gradient),
    "difference": ("conv", lambda net, x, y: difference_penalty_gradient(net, x, y, step="normalized")[1]),
    "jacobian": ("mlp", jacobian),
    "margin": ("mlp", margin),
    "flat minimum": ("mlp", flat_minimum),
    "entropy": ("mlp", entropy),
    "path": ("relu_mlp", path),
    "ghost": ("conv", ghost),
}


@pytest.mark.parametrize(("name", "function"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_same_numbers(name, function):
    x, y = batches(name)[0]
    expected = function(network(name), x, y)
    got = function(network(name).to(DEVICE), x.to(DEVICE), y.to(DEVICE))
    assert all(part.device.type == DEVICE.type for part in got)
    assert relative_error(flat(part.double() for part in got).cpu(), flat(part.double() for part in expected)) < 1e-8


def test_random_draws_are_made_on_the_device():
    net, (x, y) = network().to(DEVICE), (part.to(DEVICE) for part in batches()[0])
    assert fisher_penalty_gradient(net, x, y).penalty.isfinite()
    x = x.clone().requires_grad_()
    assert jacobian_penalty(net(x), x, generator=torch.Generator(DEVICE).manual_seed(0)).isfinite()
    states = [torch.get_rng_state(), torch.cuda.get_rng_state()]
    other = copy.deepcopy(net)
    for module in (net, other):
        optimizer = EntropySGD(module.parameters(), lr=0.1, noise=0.1, inner_steps=2)
        optimizer.step(lambda module=module: cross_entropy(module(x), y).backward())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], torch.cuda.get_rng_state())

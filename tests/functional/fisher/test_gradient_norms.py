"""log_gradient_norms against one backward pass a sample in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher.functional import log_gradient_norms
from tests.reference.cases import CASES, REFUSED, each
from tests.reference.jacobian import jacobian


@each(CASES[::4])
def test_norms_are_those_of_the_naive_jacobian(case):
    module, inputs, targets = case.build()
    expected = jacobian(module, inputs, targets, loss_fn=case.loss_fn).norm(dim=1).log()
    got = log_gradient_norms(module, inputs, targets, loss_fn=case.loss_fn, chunk_size=2)  # the last chunk is of one
    assert got.shape == (len(targets),)
    assert got.dtype == torch.float64
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 50])
def test_norms_do_not_depend_on_the_chunks(chunk_size):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    images, labels = torch.randn(7, 1, 6, 6, dtype=torch.float64), torch.randint(3, (7,))
    expected = jacobian(net, images, labels).norm(dim=1).log()
    assert torch.allclose(log_gradient_norms(net, images, labels, chunk_size=chunk_size), expected, rtol=1e-10)


def test_norms_of_a_float32_net_at_losses_below_its_range():
    net = nn.Linear(3, 3)
    with torch.no_grad():
        net.weight.copy_(60 * torch.eye(3))
        net.bias.zero_()
    inputs, targets = torch.eye(3), torch.arange(3)
    got = log_gradient_norms(net, inputs, targets)
    # p of a wrong class is e^-60, twice: gradient (δ, δ xᵀ), δ = e^-60 (-2, 1, 1); ‖(1, x)‖ = √2
    expected = -60 + 0.5 * math.log(6) + 0.5 * math.log(2)
    assert got.tolist() == pytest.approx([expected] * 3, abs=1e-5)


def test_a_zero_gradient_is_minus_infinity():
    net = nn.Linear(2, 2)
    got = log_gradient_norms(net, torch.randn(3, 2), torch.tensor([0, -100, 1]))
    assert torch.isneginf(got).tolist() == [False, True, False]


def test_samples_that_interact_are_refused():
    module, inputs, targets = REFUSED[0].build()
    with pytest.raises(ValueError, match=r"interact|statistics|batch"):
        log_gradient_norms(module, inputs, targets)


@pytest.mark.parametrize("chunk_size", [0, 2.0, True, None])
def test_chunk_size_is_checked(chunk_size):
    with pytest.raises(ValueError, match=r"`chunk_size` to be an integer of at least 1"):
        log_gradient_norms(nn.Linear(2, 2), torch.randn(3, 2), torch.zeros(3).long(), chunk_size=chunk_size)

"""Batch-norm with fixed statistics: the framework's output, bit for bit, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.normalization import _sums, fixed_batch_norm

SHAPES = [(5, 3), (5, 3, 7), (5, 3, 4, 6), (5, 3, 2, 3, 4)]


def arguments(affine=True, dtype=torch.float64):
    mean, variance = torch.randn(3, dtype=dtype), torch.rand(3, dtype=dtype) + 0.1
    weight, bias = (torch.randn(2, 3, dtype=dtype)) if affine else (None, None)
    return mean, variance, weight, bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_output_and_gradient(shape, affine):
    torch.manual_seed(0)
    given = arguments(affine)
    input, cotangent = torch.randn(2, *shape, dtype=torch.float64).unbind()
    results = []
    for function in (F.batch_norm, fixed_batch_norm):
        x = input.clone().requires_grad_()
        output = function(x, *given, eps=0.03)
        results.append((output, torch.autograd.grad(output, x, cotangent)[0]))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-14, atol=0)


def test_gradients_of_gradients():
    torch.manual_seed(0)
    given = arguments()
    inputs = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: fixed_batch_norm(x, *given).tanh(), inputs)


def test_under_vmap():
    torch.manual_seed(0)
    given = arguments()
    inputs = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    found = torch.func.vmap(torch.func.grad(lambda x: fixed_batch_norm(x, *given).tanh().sum()))(inputs)
    expected = torch.stack([torch.func.grad(lambda x: F.batch_norm(x, *given).tanh().sum())(x) for x in inputs])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_anything_that_needs_a_gradient_gets_it(which):
    torch.manual_seed(0)
    given = [tensor.requires_grad_(i == which and which > 1) for i, tensor in enumerate(arguments())]
    if which < 2:  # derived from something that is differentiated: the framework refuses or ignores it
        given[which] = given[which] * torch.ones((), dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for function in (F.batch_norm, fixed_batch_norm):
        try:
            variables = [inputs, given[which]]
            outcomes.append(torch.autograd.grad(function(inputs, *given).tanh().sum(), variables, allow_unused=True))
        except RuntimeError as error:
            outcomes.append(str(error))
    first, second = outcomes
    assert (
        first == second
        if isinstance(first, str)
        else all(a is b or torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    )


def test_statistics_of_the_batch_are_left_to_the_framework():
    torch.manual_seed(0)
    inputs = torch.randn(6, 3, dtype=torch.float64)
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    found = fixed_batch_norm(inputs, mean, variance, training=True)
    torch.testing.assert_close(found.mean(0), torch.zeros(3, dtype=torch.float64))
    assert not torch.equal(mean, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(fixed_batch_norm(inputs, None, None, training=True), found)


@pytest.mark.parametrize("shape", [(5, 3, 1), (5, 3, 7), (4, 3, 20)])
def test_sums_of_a_gpu(shape):
    """The gradient of the weight for each sample, as autograd finds it one by one."""
    torch.manual_seed(0)
    inputs, gradients = torch.randn(2, *shape, dtype=torch.float64)
    mean, variance = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    expected = []
    for x, g in zip(inputs, gradients, strict=True):
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        F.batch_norm(x[None], mean, variance, weight, eps=1e-3).backward(g[None])
        expected.append(weight.grad)
    found = _sums(inputs, gradients, mean, variance, 1e-3)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)

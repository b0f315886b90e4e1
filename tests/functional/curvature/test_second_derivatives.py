"""Operations that can be differentiated once only: another way to the same number, or one line that says so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from lightning_fisher.exceptions import SecondDerivativeError
from lightning_fisher.functional import (
    fisher_penalty_gradient,
    hessian_spectral_radius,
    jacobian_penalty,
    robustness,
)
from lightning_fisher.functional.measures import fisher_rao_norm, hessian_trace
from tests.reference import plain


class Once(torch.autograd.Function):
    """tanh, with a backward pass that can't be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].square())


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 6), nn.Linear(6, classes)

    def forward(self, x):
        return self.outer(Once.apply(self.inner(x)))


class Bag(nn.Module):
    """The gradient of `EmbeddingBag` has no derivative."""

    def __init__(self):
        super().__init__()
        self.bag, self.outer = nn.EmbeddingBag(9, 4, mode="sum"), nn.Linear(4, 3)

    def forward(self, ids, weights):
        return self.outer(self.bag(ids, per_sample_weights=weights).tanh())


def samples(build):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=generator)
    if build is Bag:
        x = torch.randint(9, (6, 3), generator=generator), torch.rand(6, 3, generator=generator)
    return x, torch.randint(3, (6,), generator=generator)


def double(tree):
    if isinstance(tree, tuple):
        return tuple(map(double, tree))
    return tree.double() if tree.is_floating_point() else tree


@pytest.mark.parametrize("build", [Net, Bag])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fisher_rao_norm_takes_a_pass_a_sample(build, dtype):
    torch.manual_seed(0)
    module = build()
    x, y = samples(build)
    wide = copy.deepcopy(module).double()
    rows = plain.gradient_rows(wide, double(x), y, 6, nn.functional.cross_entropy)
    expected = (rows @ plain.flat(list(wide.parameters())).detach()).square().mean().sqrt().item()
    given = (wide, double(x)) if dtype == torch.float64 else (module, x)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    assert fisher_rao_norm(*given, y).item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("function", [hessian_trace, hessian_spectral_radius])
@pytest.mark.parametrize("build", [Net, Bag])
def test_hessians_say_what_is_missing(function, build):
    x, y = samples(build)
    with pytest.raises(SecondDerivativeError, match="differentiated twice to compute the Hessian"):
        function(build(), x, y)


def spectral_norms(module, x):
    found = []
    for j in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda one: module(one).softmax(1)[0], x[j : j + 1])
        found.append(torch.linalg.matrix_norm(jacobian.flatten(1), 2) ** 2)
    return torch.stack(found)


@pytest.mark.parametrize(("classes", "method"), [(3, "exact"), (3, "auto"), (70, "auto")])
def test_robustness_without_second_derivatives(classes, method):
    torch.manual_seed(0)
    module, (x, _) = Net(classes).double(), samples(Net)
    found = robustness(module, x.double(), method=method, reduction="none")
    torch.testing.assert_close(found, spectral_norms(module, x.double()), rtol=1e-9, atol=0)


def test_power_iteration_needs_them():
    with pytest.raises(SecondDerivativeError, match='choose method="exact"'):
        robustness(Net(), samples(Net)[0], method="power")


def test_penalties_that_differentiate_twice():
    torch.manual_seed(0)
    module, (x, y) = Net(), samples(Net)
    with pytest.raises(SecondDerivativeError, match='choose method="finite_difference"'):
        fisher_penalty_gradient(module, x, y, method="double_backward")
    x.requires_grad_()
    with pytest.raises(SecondDerivativeError, match="the gradient of the penalty"):
        jacobian_penalty(module(x), x)

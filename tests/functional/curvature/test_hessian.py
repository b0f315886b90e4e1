"""Products with the Hessian: from a graph that is kept, unless it can't be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_fisher.functional.curvature.hessian import mean_loss_hessian

forward_passes: list[int] = []  # not an attribute of the network, which would be put back


class Counted(nn.Module):
    """A small network that counts its forward passes and, if asked to, draws in them."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        forward_passes.append(len(x))
        return self.layers(x + self.noise * torch.randn_like(x))


class Impatient(torch.autograd.Function):
    """The square; every pass through its second derivative changes what the next one gives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Derivative.apply(gradient, *ctx.saved_tensors)


class Derivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, x)
        ctx.factor = 1.0
        return 2 * gradient * x

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        gradient, x = ctx.saved_tensors
        factor, ctx.factor = ctx.factor, ctx.factor / 2
        return 2 * factor * tangent * x, 2 * factor * tangent * gradient


class Once(Derivative):
    """Gives what it saved away in its first pass."""

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        gradient, x = ctx.saved_tensors
        if ctx.factor == 0:
            raise RuntimeError("nothing is left to differentiate")
        ctx.factor = 0
        return 2 * tangent * x, 2 * tangent * gradient


class ImpatientOnce(Impatient):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Once.apply(gradient, *ctx.saved_tensors)


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(self.layer(x))


def dense_hessian(net: nn.Module, loss: Any) -> Tensor:
    """Row by row, each from a graph of its own."""
    parameters = list(net.parameters())
    rows = []
    for parameter_index, parameter in enumerate(parameters):
        for i in range(parameter.numel()):
            gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
            second = torch.autograd.grad(gradients[parameter_index].flatten()[i], parameters, materialize_grads=True)
            rows.append(torch.cat([piece.flatten() for piece in second]))
    return torch.stack(rows)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, generator=generator).double(), torch.randint(2, (7,), generator=generator)


def test_forward_passes_are_not_repeated(batch: tuple[Tensor, Tensor]) -> None:
    net = Counted()
    oracle = dense_hessian(net, lambda: nn.functional.cross_entropy(net(batch[0]), batch[1]))
    forward_passes.clear()
    with mean_loss_hessian(net, *batch) as product:
        hessian = torch.stack([product(row) for row in torch.eye(product.size, dtype=torch.float64)])
    assert torch.allclose(hessian, oracle, rtol=0, atol=1e-14)
    # Is there anything to differentiate; the graph that is kept; one to compare it with.
    assert forward_passes == [7, 7, 7]


def test_chunks_hold_no_graph(batch: tuple[Tensor, Tensor]) -> None:
    net = Counted()
    oracle = dense_hessian(net, lambda: nn.functional.cross_entropy(net(batch[0]), batch[1]))
    with mean_loss_hessian(net, *batch, chunk_size=3) as product:
        forward_passes.clear()
        hessian = torch.stack([product(row) for row in torch.eye(product.size, dtype=torch.float64)])
    assert torch.allclose(hessian, oracle, rtol=0, atol=1e-14)
    assert forward_passes == [3, 3, 1] * product.size


@pytest.mark.parametrize("function", [Impatient, ImpatientOnce])
def test_functions_for_one_pass_get_new_graphs(
    batch: tuple[Tensor, Tensor], function: type[torch.autograd.Function]
) -> None:
    net = Custom(function)
    oracle = dense_hessian(net, lambda: nn.functional.cross_entropy(net(batch[0]), batch[1]))
    with mean_loss_hessian(net, *batch) as product:
        hessian = torch.stack([product(row) for row in torch.eye(product.size, dtype=torch.float64)])
    assert torch.allclose(hessian, oracle, rtol=0, atol=1e-14)


def test_draws_are_the_same_in_every_product(batch: tuple[Tensor, Tensor]) -> None:
    net = Counted(noise=0.3)
    with mean_loss_hessian(net, *batch) as product:
        hessian = torch.stack([product(row) for row in torch.eye(product.size, dtype=torch.float64)])
    assert torch.allclose(hessian, hessian.T, rtol=0, atol=1e-14)

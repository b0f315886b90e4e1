"""Samples that affect each other for some data only: found in the call in which they do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional import exact_gamma, gram_matrix, hessian_frobenius_norm, log_gradient_norms
from lightning_fisher.functional.gram.operations import Operations
from lightning_fisher.functional.measures import fisher_rao_norm, gradient_signal_to_noise
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian

N = 8
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(N) % 3


class Switched(nn.Module):
    """Two layers with a function of the hidden activations between them."""

    def __init__(self, between):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.out = nn.Linear(6, 8).double(), nn.Linear(8, 3).double()
        self.between = between

    def forward(self, x):
        return self.out(self.between(self.body(x)))


def in_place(h):
    """What is written to through a view holds data, too."""
    kept = torch.zeros_like(h)
    kept[:] = h
    return h * (40 / kept.norm()).clamp(max=1)


def similar(h):
    """Attention over the batch, to the most similar ones only."""
    return h + 1e-3 * (h @ h.T - 300).relu().sum(1, keepdim=True)


class ScaledBackward(torch.autograd.Function):
    """Clips gradients by the largest activation of the batch."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        (h,) = ctx.saved_tensors
        return gradient * (20 / h.abs().max()).clamp(max=1)


@torch.library.custom_op("lightning_fisher_tests::clipped", mutates_args=())
def clipped(h: torch.Tensor) -> torch.Tensor:
    return h * (40 / h.norm()).clamp(max=1)


@torch.library.custom_op("lightning_fisher_tests::clipped_backward", mutates_args=())
def clipped_backward(gradient: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return gradient * (40 / h.norm()).clamp(max=1)


clipped.register_autograd(
    lambda ctx, gradient: clipped_backward(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def exchanged(h):
    """By a way that no dispatcher sees."""
    largest = torch.from_dlpack(h.detach().abs().max()).clone()
    return h * (20 / largest).clamp(max=1)


def by_capsule(h):
    """The memory of the activations, in a tensor that no operation made of them."""
    seen = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h.detach()))
    return h * (20 / seen.abs().max()).clamp(max=1)


def by_numpy(h):
    seen = torch.from_numpy(h.detach().numpy())
    return h * (20 / seen.abs().max()).clamp(max=1)


SWITCHED = {
    "in the backward pass only": ScaledBackward.apply,
    "custom operation": lambda h: clipped(h),
    "dlpack": exchanged,
    "dlpack capsule": by_capsule,
    "numpy": by_numpy,
    "norm": lambda h: h * (40 / h.norm()).clamp(max=1),
    "maximum": lambda h: h / (h.amax() / 20).clamp(min=1),
    "maximum over the batch": lambda h: h / (h.abs().max(0).values / 20).clamp(min=1),
    "any": lambda h: torch.where((h.abs() > 20).any(), 2 * h, h),
    "mean": lambda h: h - (h.mean(0) - 8).relu(),
    "variance": lambda h: h / (h.var(0, correction=0) / 50).clamp(min=1),
    "running sum": lambda h: h + (h.cumsum(0) - 50).relu(),
    "in place": in_place,
    "similar": similar,
    "read": lambda h: 2 * h if float(h.detach().abs().sum()) > 200 else h,
}


@pytest.mark.parametrize("name", SWITCHED)
def test_what_only_some_data_switch_on(name):
    module = Switched(SWITCHED[name])
    for _ in range(2):
        assert gram_error(gram_matrix(module, X, Y), gram(jacobian(module, X, Y))) < 1e-9
    active = X.clone()
    active[3:5] = 100 * X[3]
    with pytest.raises(InteractionError):
        gram_matrix(module, active, Y)


class Ordinary(nn.Module):
    """Operations along features and over parameters: nothing here couples samples."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3)
        self.out = nn.Linear(4, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))

    def forward(self, x):
        weight = self.conv.weight / self.conv.weight.norm()
        h = F.conv1d(x.unsqueeze(1), weight, self.conv.bias).relu()
        h = h - h.mean((1, 2), keepdim=True)
        h = h[:, self.order].amax(2) + h.std(2) + h.softmax(1).sum(2)
        return self.out(h) * self.out.weight.abs().max()


def test_what_is_not_chosen_by_data():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Ordinary().double()
    x = X[:2].clone()
    with Operations(data=x, count=2) as operations:
        module(x)
    assert not operations.chosen
    with Operations(data=x, count=2) as operations:
        Switched(SWITCHED["norm"])(x)
    assert operations.chosen


class Squeezed(nn.Module):
    """A regression whose outputs lose every dimension of one, that of a batch of one included."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, x):
        return self.net(x).squeeze()


def squared(outputs, targets):
    return F.mse_loss(outputs.reshape(-1), targets)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk_size", [None, 2, 3, 4])
def test_outputs_that_are_squeezed(count, chunk_size):
    module, x, y = Squeezed(), X[:count], X[:count, 0]
    rows = []
    for j in range(count):
        loss = (module.net(x[j : j + 1]) - y[j]).square().sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    rows = torch.stack(rows)
    found = gram_matrix(module, x, y, loss_fn=squared, chunk_size=chunk_size)
    assert gram_error(found, rows @ rows.T) < 1e-9
    norms = log_gradient_norms(module, x, y, loss_fn=squared, chunk_size=chunk_size or 7)
    torch.testing.assert_close(norms, rows.norm(dim=1).log(), rtol=1e-9, atol=1e-9)
    if count == 8:
        weights = torch.cat([p.detach().flatten() for p in module.parameters()])
        expected = (rows @ weights).square().mean().sqrt()
        torch.testing.assert_close(fisher_rao_norm(module, x, y, loss_fn=squared), expected)
        signal = rows.mean(0).square() / rows.var(0, correction=0)
        torch.testing.assert_close(gradient_signal_to_noise(module, x, y, loss_fn=squared), signal.mean())
        exact_gamma(module, x, y, loss_fn=squared, rank_policy="pseudo")
        reference = hessian_frobenius_norm(module, x, y, loss_fn=squared, num_probes=10**6).value
        for size in (1, 3, 7):
            got = hessian_frobenius_norm(module, x, y, loss_fn=squared, num_probes=10**6, chunk_size=size).value
            torch.testing.assert_close(got, reference)

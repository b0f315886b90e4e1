"""Losses that read what the forward pass left behind without a graph: weights of samples, in the module or outside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import (
    exact_gamma,
    gradient_norm_penalty_gradient,
    gram_matrix,
    log_gradient_norms,
    penalty_gradient,
    regularized_gradient,
    sharpness_aware_gradient,
)
from lightning_fisher.functional.measures import fisher_rao_norm, gradient_signal_to_noise, hessian_trace
from tests.reference.plain import flat, gradient_rows

N = 8
OUTSIDE = {}


class InAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.kept = nn.Linear(4, 5), nn.Linear(5, 3), None

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        self.kept = hidden.detach().square().sum(1)
        return self.b(hidden)


class Outside(InAttribute):
    """A forward hook keeps it in a global dictionary."""

    def __init__(self):
        super().__init__()
        del self.kept
        self.a.register_forward_hook(lambda layer, received, made: OUTSIDE.update(kept=made.detach()))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Counting(nn.Module):
    """Keeps a part of its graph, a running mean and how often it was called, and uses the mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.kept, self.calls, self.means, self.mean = None, 0, [], torch.zeros(5)

    def forward(self, x):
        hidden = torch.tanh(self.a(x))
        self.kept = hidden.square().mean()
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        self.means.append(self.mean)
        return self.b(hidden - self.mean)


def by_hand(state, x, y, step):
    """Loss and gradient at w and, with the mean that the pass at w starts from, at w + step(g)."""

    def run(shift):
        net = Counting().double()
        net.load_state_dict(state)
        net.mean = torch.zeros(5, dtype=torch.float64)
        with torch.no_grad():
            for parameter, part in zip(net.parameters(), shift, strict=True):
                parameter += part
        return torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters()))

    g = run([torch.zeros_like(part) for part in state.values()])
    return g, run(step(g))


@pytest.mark.parametrize(
    "function", [sharpness_aware_gradient, gradient_norm_penalty_gradient, "full", "vmap", "shared"]
)
def test_attributes_move_as_in_one_pass(function):
    net = Counting().double()
    net.mean = net.mean.double()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 4, generator=generator, dtype=torch.float64), torch.arange(N) % 3
    once = copy.deepcopy(net)
    once(x)
    if function in ("full", "vmap", "shared"):
        form = {"gradient": "shared"} if function == "shared" else {"passes": "vmap" if function == "vmap" else "loop"}
        found = regularized_gradient(net, x, y, beta=3.0, alpha=0.1, num_sub_batches=1, **form)
        g, moved = by_hand(net.state_dict(), x, y, lambda g: [-0.1 * part for part in g])
        expected = flat([a + 3.0 * (a - b) for a, b in zip(g, moved, strict=True)])
    else:
        found = function(net, x, y, 0.3)
        unit = lambda g: [0.3 * part / flat(g).norm() for part in g]  # noqa: E731
        g, moved = by_hand(net.state_dict(), x, y, unit)
        share = 1.0 if function is sharpness_aware_gradient else 0.8
        expected = flat([(1 - share) * a + share * b for a, b in zip(g, moved, strict=True)])
    torch.testing.assert_close(flat(found.gradient), expected, rtol=1e-12, atol=1e-13)
    assert (net.calls, len(net.means)) == (1, 1)
    torch.testing.assert_close(net.mean, once.mean, rtol=0, atol=0)
    torch.testing.assert_close(net.kept, once.kept, rtol=0, atol=0)


def each(module):
    def loss(outputs, targets):
        kept = module.kept if "kept" in vars(module) else torch.tanh(OUTSIDE["kept"]).square().sum(1)
        return cross_entropy(outputs, targets, reduction="none") * kept

    return loss


def mean(module):
    return lambda outputs, targets: each(module)(outputs, targets).mean()


@pytest.fixture(params=[InAttribute, Outside])
def module(request):
    return request.param().double()


X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(N) % 3
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("loss", [each, mean])
def test_gradients_of_single_samples(module, loss):
    rows = gradient_rows(module, X, Y, N, each(module))
    weights = flat([p.detach() for p in module.parameters()])
    for chunk_size in (None, 3):
        assert torch.allclose(
            gram_matrix(module, X, Y, loss_fn=loss(module), chunk_size=chunk_size), rows @ rows.T, **CLOSE
        )
    norms = log_gradient_norms(module, X, Y, loss_fn=loss(module), chunk_size=3)
    assert torch.allclose(norms, rows.norm(dim=1).log(), **CLOSE)
    expected = (rows @ weights).square().mean().sqrt()
    assert torch.allclose(fisher_rao_norm(module, X, Y, loss_fn=loss(module)), expected, **CLOSE)
    moving = (rows != 0).any(0)
    expected = (rows.mean(0).square() / rows.var(0, correction=0))[moving].mean()
    assert torch.allclose(gradient_signal_to_noise(module, X, Y, loss_fn=loss(module)), expected, rtol=1e-7)
    with pytest.raises(ValueError, match="reads what the forward pass leaves"):
        exact_gamma(module, X, Y, loss_fn=loss(module))


@pytest.mark.parametrize("loss", [each, mean])
def test_gradients_of_parts(module, loss):
    """Two parts of a mean weigh the same."""
    parameters, alpha = list(module.parameters()), 1e-2

    def gradient(part):
        value = each(module)(module(X[part]), Y[part]).mean()
        return value.detach(), torch.autograd.grad(value, parameters)

    value, penalty = torch.zeros(()).double(), [torch.zeros_like(p) for p in parameters]
    for part in (slice(0, 4), slice(4, 8)):
        here, own = gradient(part)
        with torch.no_grad():
            torch._foreach_sub_(parameters, own, alpha=alpha)
        there, moved = gradient(part)
        with torch.no_grad():
            torch._foreach_add_(parameters, own, alpha=alpha)
        value += (here - there) / 2
        penalty = [p + (g - h) / 2 for p, g, h in zip(penalty, own, moved, strict=True)]
    options = {"alpha": alpha, "num_sub_batches": 2, "loss_fn": loss(module)}
    found = penalty_gradient(module, X, Y, **options)
    assert found[0].item() == pytest.approx(value.item(), rel=1e-9)
    assert torch.allclose(flat(found[1]), flat(penalty), **CLOSE)
    whole, plain = gradient(slice(0, N))
    for form in ("full", "shared"):
        result = regularized_gradient(module, X, Y, beta=2.0, gradient=form, **options)
        assert result.loss.item() == pytest.approx(whole.item(), rel=1e-9)
        assert torch.allclose(flat(result.gradient), flat(plain) + 2 * flat(penalty), **CLOSE)


@pytest.mark.parametrize("loss", [each, mean])
def test_chunks_of_a_hessian(module, loss):
    parameters = list(module.parameters())
    value = each(module)(module(X), Y).mean()
    first = flat(torch.autograd.grad(value, parameters, create_graph=True))
    trace = 0.0
    for i in range(len(first)):
        row = torch.autograd.grad(first[i], parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        trace += flat(row)[i].item()
    for chunk_size in (None, 3):
        found = hessian_trace(module, X, Y, loss_fn=loss(module), num_products=len(first), chunk_size=chunk_size)
        assert found.value.item() == pytest.approx(trace, rel=1e-9)

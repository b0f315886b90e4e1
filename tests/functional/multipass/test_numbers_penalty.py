"""The penalty where numbers end: what is added to a step is finite or nothing, and the host is never asked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_fisher.functional import penalty_gradient, regularized_gradient
from lightning_fisher.functional.multipass import gradients
from tests.functional.snapshot import changes, snapshot
from tests.reference.penalty import loss_and_gradient, penalty

N, M = 8, 4
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(N) % 3


class Cliff(nn.Module):
    """A network whose loss is that of its MLP at ``u = 0``, and ``beyond(u)`` where a steep gradient has moved u.

    Samples with a last feature above 5 make the gradient with respect to u large enough.
    """

    def __init__(self, beyond):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.u = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.beyond = beyond

    def forward(self, x):
        logits = self.net(x.clamp(max=3.0))
        steep = 1e6 * (x[:, -1] > 5).to(x) * self.u
        return torch.cat([logits[:, :1] + steep[:, None] + self.beyond(self.u), logits[:, 1:]], 1)


class InfiniteSlope(torch.autograd.Function):
    """Zero everywhere, with an infinite derivative away from zero."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u * 0

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * torch.where(u == 0, 0.0, math.inf)


CLIFFS = {
    "nan loss": lambda u: torch.log(1 - u * u),
    "infinite loss": lambda u: torch.where(u * u < 1, 0.0, math.inf) + 0 * u,
    "overflow": lambda u: torch.exp(1e4 * u * u) - 1,
    "finite loss, infinite gradient": InfiniteSlope.apply,
}
each_cliff = pytest.mark.parametrize("beyond", CLIFFS.values(), ids=CLIFFS)


def steep(samples):
    x = X.clone()
    x[samples, -1] = 10.0
    return x


@each_cliff
@pytest.mark.parametrize("samples", [[0], [7], list(range(N))], ids=["first part", "last part", "all"])
def test_a_penalty_that_is_not_finite_is_nothing(beyond, samples):
    module, inputs = Cliff(beyond), steep(samples)
    plain_loss, _ = loss_and_gradient(module, inputs, Y)
    assert math.isfinite(plain_loss)
    before = snapshot(module)
    value, gradient = penalty_gradient(module, inputs, Y, num_sub_batches=M)
    assert math.isnan(value)
    assert all(torch.equal(g, torch.zeros_like(p)) for g, p in zip(gradient, module.parameters(), strict=True))
    assert changes(before, snapshot(module)) == []


@each_cliff
def test_far_from_the_cliff_it_is_the_usual_one(beyond):
    value, gradient = penalty_gradient(Cliff(beyond), X, Y, num_sub_batches=M)
    expected, expected_gradient = penalty(Cliff(CLIFFS["nan loss"]), X, Y, alpha=1e-4, num_sub_batches=M)
    if beyond is not CLIFFS["finite loss, infinite gradient"]:  # u moves by α ∂L/∂u = 0 there, to the last bit
        assert value.item() == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(gradient[1], expected_gradient[1], rtol=1e-6, atol=1e-15)


def test_weights_that_overflow_on_the_way():
    """``α g`` itself is beyond float32."""
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    before = snapshot(module)
    steeper = lambda outputs, targets: 1e3 * cross_entropy(outputs, targets)  # noqa: E731
    value, gradient = penalty_gradient(module, X.float(), Y, num_sub_batches=M, alpha=3e38, loss_fn=steeper)
    assert math.isnan(value)
    assert all(not g.any() for g in gradient)
    assert changes(before, snapshot(module)) == []


@pytest.mark.parametrize("form", ["full", "shared"])
@each_cliff
def test_the_regularized_step_is_then_the_plain_one(beyond, form):
    module, inputs = Cliff(beyond), steep([2])
    loss, expected = loss_and_gradient(module, inputs, Y)
    got = regularized_gradient(module, inputs, Y, beta=1e6, num_sub_batches=M, gradient=form)
    assert got.loss.item() == pytest.approx(loss, rel=1e-12)
    assert math.isnan(got.penalty)
    for a, b in zip(got.gradient, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", ["full", "shared"])
def test_a_loss_that_is_nan_stays_nan(form):
    """It is for the training loop to see; nothing of it is hidden, nothing is added."""
    module, inputs = Cliff(CLIFFS["nan loss"]), X.clone()
    inputs[3, 0] = math.nan
    value, gradient = penalty_gradient(module, inputs, Y, num_sub_batches=M)
    assert math.isnan(value)
    assert all(not g.any() for g in gradient)
    got = regularized_gradient(module, inputs, Y, beta=1.0, num_sub_batches=M, gradient=form)
    assert math.isnan(got.loss)
    assert math.isnan(got.penalty)
    assert torch.isnan(got.gradient[1]).all()


def test_gradients_that_are_zero_move_nothing():
    flat = lambda outputs, targets: torch.relu(-outputs.square()).mean()  # noqa: E731
    module = nn.Linear(6, 3).double()
    value, gradient = penalty_gradient(module, X, Y, num_sub_batches=M, loss_fn=flat)
    assert value == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradient)


@pytest.mark.parametrize("loss_fn", [None, cross_entropy], ids=["default", "custom"])
@pytest.mark.parametrize("samples", [slice(0, 2), slice(3, 7)], ids=["first part", "a part and halves of others"])
def test_a_sub_batch_without_labels_weighs_nothing(samples, loss_fn):
    """Its mean loss is 0/0; the loss of the whole batch is not."""
    targets = Y.clone()
    targets[samples] = -100
    labels = lambda y: int((y != -100).sum())  # noqa: E731
    options = {"num_sub_batches": M, "alpha": 1e-2}
    value, gradient = penalty_gradient(Cliff(CLIFFS["nan loss"]), X, targets, loss_fn=loss_fn, **options)
    expected, expected_gradient = penalty(
        Cliff(CLIFFS["nan loss"]), X, targets, loss_fn=cross_entropy, denominator=labels, **options
    )
    assert value.item() == pytest.approx(expected, rel=1e-9)
    for a, b in zip(gradient, expected_gradient, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("loss_fn", [None, cross_entropy], ids=["default", "custom"])
def test_a_batch_without_labels_has_no_penalty(loss_fn):
    value, gradient = penalty_gradient(
        Cliff(CLIFFS["nan loss"]), X, torch.full_like(Y, -100), num_sub_batches=M, loss_fn=loss_fn
    )
    assert math.isnan(value)
    assert all(not g.any() for g in gradient)


@pytest.mark.parametrize("alpha", [1e39, 1e-39, 0.0, math.nan])
def test_a_step_that_no_weight_can_take_is_refused(alpha):
    with pytest.raises(ValueError, match=r"Expected argument `alpha` .* float32"):
        penalty_gradient(Cliff(CLIFFS["nan loss"]), X, Y, num_sub_batches=M, alpha=alpha)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, x):
        return self.net(x).detach()


class FreezesItself(nn.Module):
    """``requires_grad`` changes in the forward pass, from the second one on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.calls = 0

    def forward(self, x):
        self.net[0].requires_grad_(self.calls < 1)
        self.calls += 1
        return self.net(x)


def test_a_loss_without_a_graph_is_refused():
    with pytest.raises(ValueError, match="Expected a loss that depends on the trainable parameters"):
        penalty_gradient(Detached(), X.float(), Y, num_sub_batches=M)


def test_parameters_frozen_by_the_forward_pass():
    module = FreezesItself()
    module.calls = 1  # frozen from the first pass on, but not when the parameters were listed
    _, got = penalty_gradient(module, X, Y, num_sub_batches=M)
    module.net[0].requires_grad_(False)
    _, expected = penalty(module.net, X, Y, alpha=1e-4, num_sub_batches=M)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-15)
    assert not got[0].any()


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func.overloadpacket) in ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("samples", [[], [0]], ids=["finite", "left out"])
@pytest.mark.parametrize("form", ["full", "shared"])
def test_the_decision_is_taken_on_the_device(samples, form, monkeypatch):
    monkeypatch.setattr(gradients, "_is_finite", lambda *given: False)  # a CPU's short cut, which reads a number
    module, inputs = Cliff(CLIFFS["nan loss"]), steep(samples)

    def loss(outputs, targets):  # one a sample: a scalar is asked for its denominator, which is a number
        return cross_entropy(outputs, targets, reduction="none")

    with Waits() as waits:
        regularized_gradient(module, inputs, Y, beta=1.0, num_sub_batches=M, gradient=form, loss_fn=loss)
    assert waits.found == []
    with Waits() as waits:  # the counter counts
        bool(torch.isfinite(inputs).all())
    assert waits.found != []

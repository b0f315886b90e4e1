"""What every method with perturbed points leaves behind, and how it treats batch-norm, dropout, precision, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_fisher.functional import (
    difference_penalty_gradient,
    fisher_penalty_gradient,
    gradient_norm_penalty_gradient,
    sharpness_aware_gradient,
)
from tests.functional.compare import cosine, gradient_error
from tests.functional.snapshot import changes, snapshot
from tests.reference.penalty import loss_and_gradient

N = 8
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3

TRAINING = {
    "sam": sharpness_aware_gradient,
    "asam": lambda *a, **k: sharpness_aware_gradient(*a, rho=1.0, adaptive=True, **k),
    "gnp": gradient_norm_penalty_gradient,
    "fisher": lambda *a, **k: fisher_penalty_gradient(*a, labels=Y.flip(0), **k),
    "fisher, double": lambda *a, **k: fisher_penalty_gradient(*a, labels=Y.flip(0), method="double_backward", **k),
}
PLAIN = {
    "sam": lambda *a: sharpness_aware_gradient(*a, rho=0),
    "gnp": lambda *a: gradient_norm_penalty_gradient(*a, coefficient=0),
    "fisher": lambda *a: fisher_penalty_gradient(*a, weight=0),
}
each_training = pytest.mark.parametrize("function", TRAINING.values(), ids=TRAINING)
each_plain = pytest.mark.parametrize("function", PLAIN.values(), ids=PLAIN)


def network(*more, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), *more, nn.Tanh(), nn.Linear(8, 3)).to(dtype)


@each_training
def test_buffers_and_random_state_move_on_as_in_one_pass(function):
    module = network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    once = copy.deepcopy(module)
    before, state = snapshot(module), torch.get_rng_state()
    once(X.double())
    expected = torch.get_rng_state()
    torch.set_rng_state(state)
    function(module, X, Y)
    assert torch.equal(torch.get_rng_state(), expected)
    for buffer, wanted in zip(module.buffers(), once.buffers(), strict=True):
        assert torch.equal(buffer, wanted)
    left = {"torch random state", "1.running_mean: buffer", "1.running_var: buffer", "1.num_batches_tracked: buffer"}
    assert set(changes(before, snapshot(module))) == left


def test_an_extra_evaluation_leaves_everything():
    module = network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    before = snapshot(module)
    difference_penalty_gradient(module, X, Y, num_sub_batches=2, difference="central", step="normalized")
    assert changes(before, snapshot(module)) == []


@each_plain
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_weight_it_is_the_plain_gradient_bit_for_bit(function, dtype):
    module = network(nn.BatchNorm1d(8), nn.Dropout(0.5), dtype=dtype)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    plain = copy.deepcopy(module)
    state = torch.get_rng_state()
    torch.nn.functional.cross_entropy(plain(X.to(dtype)).double(), Y).backward()
    torch.set_rng_state(state)
    calls.clear()
    result = function(module, X, Y)
    assert len(calls) == 1
    assert result.penalty.item() == 0.0
    for parameter, got in zip(plain.parameters(), result.gradient, strict=True):
        assert torch.equal(parameter.grad, got)


class Thrower(nn.Module):
    """Fails at the second call, counted where no pass puts anything back."""

    calls = 0

    def forward(self, x):
        Thrower.calls += 1
        if Thrower.calls == 2:
            raise RuntimeError("out of order")
        return x


@each_training
def test_everything_is_put_back_after_an_error(function):
    module = network(nn.BatchNorm1d(8), Thrower(), nn.Dropout(0.5))
    before = snapshot(module)
    Thrower.calls = 0
    with pytest.raises(RuntimeError, match="out of order"):
        function(module, X, Y)
    assert changes(before, snapshot(module)) == []


class Cliff(nn.Module):
    """Infinite a little off its initial weight."""

    def __init__(self):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x * (1 + self.u + torch.where(self.u == 0, 0.0, torch.inf))


@pytest.mark.parametrize("name", ["sam", "gnp", "fisher"])
def test_what_is_not_finite_at_the_perturbed_point_is_left_out(name):
    module = network(Cliff())
    _, plain = loss_and_gradient(module, X.double(), Y)
    result = TRAINING[name](module, X, Y)
    assert result.loss.isfinite()
    if name != "fisher":
        assert result.penalty.isnan()
    assert gradient_error(result.gradient, plain) < 1e-12


def test_what_is_not_finite_in_one_sub_batch_leaves_the_plain_step():
    """The first sub-batch has no slope along u, so it doesn't fall off; the second does."""
    x = X.clone().double()
    plain = loss_and_gradient(network(), x, Y)[1]

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.u = network(), nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            steep = (x[:, -1:] > 100).to(x)
            x = x.clone()
            x[:, -1] = torch.where(x[:, -1] > 100, x[:, -1] - 200, x[:, -1])
            return self.net(x) * (1 + steep * self.u) + torch.where(self.u == 0, 0.0, torch.inf) * steep

    module = Half()
    x[4:, -1] += 200
    result = sharpness_aware_gradient(module, x, Y, num_sub_batches=2)
    assert result.penalty.isnan()
    names = [name for name, _ in module.named_parameters()]
    got = [g for name, g in zip(names, result.gradient, strict=True) if name != "u"]
    assert gradient_error(got, plain) < 1e-12


@each_training
def test_full_precision_under_autocast(function):
    module = network(dtype=torch.float32)
    expected = function(copy.deepcopy(module).double(), X.double(), Y)
    with torch.autocast("cpu", torch.bfloat16):
        result = function(module, X, Y)
    assert cosine(result.gradient, expected.gradient) > 1 - 1e-8
    assert result.penalty.item() == pytest.approx(expected.penalty.item(), rel=1e-3)
    assert result.penalty.dtype == result.loss.dtype == torch.float64


@each_training
def test_under_inference_mode(function):
    module = network()
    expected = function(module, X, Y)
    with torch.inference_mode():
        result = function(module, X, Y)
    assert gradient_error(result.gradient, expected.gradient) == 0


@each_training
def test_frozen_parameters_get_zeros_and_stay(function):
    module = network()
    module[0].weight.requires_grad_(False)
    before = snapshot(module)
    result = function(module, X, Y)
    assert result.gradient[0].count_nonzero() == 0
    assert result.gradient[0].shape == module[0].weight.shape
    assert result.gradient[1].count_nonzero() > 0
    assert changes(before, snapshot(module)) == []


@each_training
def test_half_precision_weights_are_refused(function):
    with pytest.raises(ValueError, match="float32 or float64"):
        function(network(dtype=torch.bfloat16), X, Y)


@each_training
def test_a_loss_without_slope_is_refused(function):
    module = network(dtype=torch.float32)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="require gradients"):
        function(module, X, Y)

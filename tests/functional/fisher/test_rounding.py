"""Losses whose gradient cancels in float32: residuals near a minimum, probabilities near one.

The oracle is a loop of single-sample backward passes in float64, of the loss in a form that doesn't cancel.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, nll_loss

from lightning_fisher.functional import fisher_log_det, layer_log_dets
from lightning_fisher.metrics import FisherMetric
from tests.reference.logdet import jacobian_log_det
from tests.reference.plain import gradient_rows

N = 12


def double(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


def expected(module, inputs, targets, loss):
    module = copy.deepcopy(module).double()
    return jacobian_log_det(gradient_rows(module, inputs.double(), double(targets), len(inputs), loss(module)))


def regression(residual, outputs=2):
    """A network and targets that it misses by ``residual``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, outputs))
        inputs = torch.randn(N, 6)
        targets = net(inputs).detach() + residual * torch.randn(N, outputs)
    return net, inputs, targets


def square(module):
    return lambda outputs, targets: (outputs - targets).square().sum(1)


def mean_square(module):
    return mse_loss


class Scaled(nn.Module):
    """Regression with a learned noise level, which the loss uses."""

    def __init__(self, net):
        super().__init__()
        self.net, self.log_variance = net, nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return {"mean": self.net(x)}


def likelihood(module):
    def loss(outputs, targets):
        error = (outputs["mean"] - targets).square().sum(1)
        return error / module.log_variance.to(error.dtype).exp() + 1e-3 * module.log_variance.to(error.dtype).square()

    return loss


def repeated(caught):
    return any("rounding to float32" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("residual", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("loss", [square, mean_square])
def test_residuals_near_a_minimum_are_computed_in_float64(residual, loss):
    net, inputs, targets = regression(residual)
    right = expected(net, inputs, targets, loss).log_det
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fisher_log_det(net, inputs, targets, loss_fn=loss(net))
    assert found.log_det.item() == pytest.approx(right, rel=1e-6)
    assert residual > 1e-3 or repeated(caught)


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_directions_of_small_residuals_at_equal_outputs(seed):
    """The gradient of ``⟨u_j, z_j⟩``, u_j the unit residual: float32 knows those of the smallest residuals worst."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
        inputs = torch.randn(6, 5)
        targets = net(inputs).detach() + 1e-3 * torch.randn(6, 2)
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        units = nn.functional.normalize(exact(inputs.double()) - targets.double(), dim=1)
    rows = gradient_rows(exact, inputs.double(), units, 6, lambda outputs, units: (outputs * units).sum(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fisher_log_det(net, inputs, targets, loss_fn=square(net), residual=False).log_det
    assert repeated(caught)
    assert float(found) == pytest.approx(float(jacobian_log_det(rows).log_det), rel=1e-6)


def test_a_residual_of_exactly_zero_in_float32_is_no_zero_gradient():
    net, inputs, targets = regression(1e-5)
    targets[4] = net(inputs[4:5]).detach()[0]
    assert torch.equal(net(inputs[4:5]), targets[4:5])
    right = expected(net, inputs, targets, square).log_det
    with pytest.warns(UserWarning, match="float64"):
        found = fisher_log_det(net, inputs, targets, loss_fn=square(net))
    assert int(found.rank) == N
    assert found.log_det.item() == pytest.approx(right, rel=1e-6)


def test_a_loss_with_parameters_of_the_module():
    net, inputs, targets = regression(1e-4)
    module = Scaled(net)
    right = expected(module, inputs, targets, likelihood).log_det
    with pytest.warns(UserWarning, match="float64"):
        found = fisher_log_det(module, inputs, targets, loss_fn=likelihood(module))
    assert found.log_det.item() == pytest.approx(right, rel=1e-6)


def sure(sureness):
    """A classifier of log-probabilities, sure of its labels, and its logits."""
    net, inputs, _ = regression(1.0, outputs=3)
    with torch.no_grad():
        net[2].weight.mul_(sureness)
    return nn.Sequential(*net, nn.LogSoftmax(1)), net, inputs, net(inputs).argmax(1)


@pytest.mark.parametrize("sureness", [5, 20])
def test_probabilities_that_the_module_returns(sureness):
    module, logits, inputs, labels = sure(sureness)
    right = expected(logits, inputs, labels, lambda m: cross_entropy).log_det
    with pytest.warns(UserWarning, match="float64"):
        found = fisher_log_det(module, inputs, labels, loss_fn=lambda o, t: nll_loss(o, t, reduction="none"))
    assert found.log_det.item() == pytest.approx(right, rel=1e-6)


def test_layers_and_the_metric():
    net, inputs, targets = regression(1e-4)
    right = expected(net, inputs, targets, square).log_det
    metric = FisherMetric(loss_fn=square(net))
    with pytest.warns(UserWarning, match="float64"):
        metric.update(net, inputs, targets)
    assert metric.compute()["gamma"].item() == pytest.approx(right, rel=1e-6)
    with pytest.warns(UserWarning, match="float64"):
        found = layer_log_dets(net, inputs, targets, loss_fn=square(net))
    assert found.total.log_det.item() == pytest.approx(right, rel=1e-6)


def test_residuals_that_float32_holds_take_no_passes_in_float64():
    net, inputs, targets = regression(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fisher_log_det(net, inputs, targets, loss_fn=square(net))
    assert found.log_det.item() == pytest.approx(expected(net, inputs, targets, square).log_det, rel=1e-6)

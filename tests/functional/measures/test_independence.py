"""Measures of single samples where these interact, and where only their numbers look as if they did."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional import hessian_frobenius_norm, log_gradient_norms, robustness
from lightning_fisher.functional.fisher.exact import exact_gamma
from lightning_fisher.functional.measures import (
    fisher_rao_norm,
    gauss_newton_trace,
    gradient_signal_to_noise,
    hessian_trace,
    median_margin,
    normalized_margins,
    output_margin,
    output_margins,
    relative_flatness,
)
from tests.reference.interactions import INTERACTIONS, Net
from tests.reference.plain import gradient_rows

N, CLASSES = 8, 3
OUTPUTS = {  # made of outputs, or of gradients behind the layer where samples meet
    "output margins": lambda m, x, y: output_margins(m, x, y),
    "output margin": lambda m, x, y: output_margin(m, x, y),
    "margin at the features": lambda m, x, y: median_margin(m, x, y, at="features"),
    "relative flatness": lambda m, x, y: relative_flatness(m, x, y),
}
GRADIENTS = {
    "Fisher-Rao": lambda m, x, y: fisher_rao_norm(m, x, y),
    "signal to noise": lambda m, x, y: gradient_signal_to_noise(m, x, y),
    "margin at the input": lambda m, x, y: median_margin(m, x, y),
    "margin at a layer": lambda m, x, y: median_margin(m, x, y, at="a"),
    "exact": lambda m, x, y: exact_gamma(m, x, y, rank_policy="pseudo"),
}
BY_ONES = {
    "Gauss-Newton, by ones": lambda m, x, y: gauss_newton_trace(m, x, chunk_size=1),
    "norms, by ones": lambda m, x, y: log_gradient_norms(m, x, y, chunk_size=1),
    "robustness, by ones": lambda m, x, y: robustness(m, x, chunk_size=1),
    "Hessian trace, by ones": lambda m, x, y: hessian_trace(m, x, y, chunk_size=1, num_products=6, method="hutch++"),
    "Hessian norm, by ones": lambda m, x, y: hessian_frobenius_norm(m, x, y, chunk_size=1),
}


def batch(dtype=torch.float64):
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x, torch.arange(N) % CLASSES


def each_loss(outputs, targets):
    return cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("between", INTERACTIONS)
@pytest.mark.parametrize("measure", {**OUTPUTS, **GRADIENTS})
def test_samples_that_interact_are_refused(measure, between, dtype):
    module = Net(INTERACTIONS[between], CLASSES).to(dtype)
    if measure in OUTPUTS and between == "gradient only":  # which none of these contains
        alike = Net(lambda x: x, CLASSES).to(dtype)
        assert torch.equal(OUTPUTS[measure](module, *batch(dtype)), OUTPUTS[measure](alike, *batch(dtype)))
        return
    with pytest.raises(InteractionError, match="Expected samples that don't interact"):
        {**OUTPUTS, **GRADIENTS}[measure](module, *batch(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("between", ["last two", "detached mean", "sorted"])
@pytest.mark.parametrize("measure", BY_ONES)
def test_chunks_of_one_sample_hide_no_interaction(measure, between, dtype):
    with pytest.raises(InteractionError, match="Expected samples that don't interact"):
        BY_ONES[measure](Net(INTERACTIONS[between], CLASSES).to(dtype), *batch(dtype))


class Pair(torch.autograd.Function):
    """The identity; in its backward pass samples 2 and 5 meet."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        mixed = gradient.clone()
        mixed[2] = gradient[2] + gradient[5]
        return mixed


@pytest.mark.parametrize("count", range(6, 14))
def test_two_samples_are_enough(count):
    """Whatever signs they are checked with."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module, y = Net(lambda h: Pair.apply(h) if len(h) == count else h, CLASSES).double(), torch.arange(count) % CLASSES
    for measure in (median_margin, gradient_signal_to_noise):
        with pytest.raises(InteractionError, match="gradient, though not its output"):
            measure(module, x, y)
    with pytest.raises(InteractionError):
        robustness(module, x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_numbers_without_interaction(dtype, seed):
    """A network with kinks, whose single outputs may be near zero, some of them masked."""
    torch.manual_seed(seed)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))

        def forward(self, x):
            return self.body(x).masked_fill(torch.tensor([False, False, False, True]), -math.inf)

    x, y = batch(dtype)
    module = Masked().to(dtype)
    rows = gradient_rows(module.double(), x.double(), y, N, each_loss)
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    module.to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    expected = (rows @ weights).square().mean().sqrt()
    assert fisher_rao_norm(module, x, y).item() == pytest.approx(expected.item(), rel=tolerance)
    moving = (rows != 0).any(0)
    expected = (rows.mean(0).square() / rows.var(0, correction=0))[moving].mean()
    assert gradient_signal_to_noise(module, x, y).item() == pytest.approx(expected.item(), rel=10 * tolerance)

    margins, net = normalized_margins(module.body, x, y), module.body.double()
    for j in range(N):
        own = x[j].double().requires_grad_()
        logits = net(own)
        others = [k for k in range(4) if k != y[j]]
        margin = logits[y[j]] - max(logits[k] for k in others)
        slope = torch.autograd.grad(margin, own)[0].norm()
        assert margins[j].item() == pytest.approx((margin / slope).item(), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("measure", ["output margins", "relative flatness", "Fisher-Rao", "signal to noise"])
def test_random_numbers_are_not_taken_for_an_interaction(measure):
    module = Net(lambda x: x + torch.randn_like(x), CLASSES).double()
    with pytest.raises(ValueError, match="Expected a deterministic forward pass in evaluation mode"):
        {**OUTPUTS, **GRADIENTS}[measure](module, *batch())


def test_one_sample_has_nothing_to_meet():
    module = Net(INTERACTIONS["last two"], CLASSES).double()
    x, y = (tensor[:1] for tensor in batch())
    for measure in (fisher_rao_norm, median_margin, output_margin):
        assert math.isfinite(measure(module, x, y))

"""What the measures do where numbers end, and which arguments they refuse."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fisher.exceptions import NonFiniteError, UndefinedMeasureError
from lightning_fisher.functional import fisher_log_det, log_spectrum
from lightning_fisher.functional.measures import (
    MEASURES,
    average_sharpness,
    distance_from_initialization,
    evidence_log_det,
    fisher_rao_norm,
    gauss_newton_trace,
    gradient_noise_scale,
    gradient_signal_to_noise,
    hessian_trace,
    log_frobenius_product,
    log_spectral_product,
    margin_signature,
    median_margin,
    noise_tolerance,
    normalized_margins,
    output_margin,
    participation_ratio,
    path_norm,
    relative_flatness,
    weighted_hessian_trace,
    worst_sharpness,
)


def linear(weight, bias=False):
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias).double()
    layer.weight.data.copy_(torch.tensor(weight, dtype=torch.float64))
    return layer


def problem(count=12, width=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)).double()
        inputs = torch.randn(count, 4, dtype=torch.float64)
    return net, inputs, net(inputs).argmax(1)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_declarations_fit_the_functions(measure):
    parameters = inspect.signature(measure.function).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    assert len(required) <= len(measure.needs) <= len(positional)
    same = {"folded": "module", **dict.fromkeys(measure.needs, "fisher")} if measure.form else {"folded": "module"}
    needs = [same.get(name, name) for name in measure.needs]
    assert needs == positional[: len(needs)]
    assert set(measure.defaults) <= set(measure.options)
    assert all((measure.cost, measure.source, measure.formula, measure.fails))


# Margins


def test_a_margin_whose_gradient_is_zero_is_infinite_with_its_sign():
    net = nn.Sequential(linear([[0.0], [0.0]], bias=True)).double()
    net[0].bias.data.copy_(torch.tensor([1.0, 0.0]))
    margins = normalized_margins(net, torch.ones(2, 1).double(), torch.tensor([0, 1]))
    assert margins.tolist() == [math.inf, -math.inf]
    net[0].bias.data.zero_()
    assert normalized_margins(net, torch.ones(1, 1).double(), torch.tensor([0])).tolist() == [0.0]


def test_the_median_of_infinite_margins():
    """Half-way between the two in the middle, by hand: the same where they are equal, undefined between both signs."""
    net = nn.Sequential(linear([[0.0], [0.0]], bias=True)).double()
    net[0].bias.data.copy_(torch.tensor([1.0, 0.0]))
    x = torch.ones(4, 1).double()
    for targets, expected in (([0, 0, 0, 0], math.inf), ([1, 1, 1, 0], -math.inf), ([0, 0, 0, 1], math.inf)):
        assert median_margin(net, x, torch.tensor(targets)) == expected
    assert median_margin(net, x, torch.tensor([0, 0, 1, 1])).isnan()
    net[0].weight.data.copy_(torch.tensor([[1.0], [0.0]]))
    net[0].bias.data.zero_()
    x = torch.tensor([[1.0], [2.0], [4.0], [100.0]]).double()  # the margins are x
    assert median_margin(net, x, torch.zeros(4, dtype=torch.long)) == 3.0
    assert median_margin(net, x[:3], torch.zeros(3, dtype=torch.long)) == 2.0


def test_a_margin_over_a_spread_of_zero_is_refused():
    net = nn.Sequential(linear([[1.0], [2.0]]), linear([[1.0, 0.0], [0.0, 1.0]])).double()
    with pytest.raises(UndefinedMeasureError, match="over the spread is defined, but got activations that don't vary"):
        normalized_margins(net, torch.ones(3, 1).double(), torch.tensor([0, 1, 1]), at="0", spread=True)


@pytest.mark.parametrize("measure", [log_spectral_product, log_frobenius_product])
def test_products_of_weights_that_are_no_numbers(measure):
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="Expected finite weights"):
            measure({"a": torch.tensor([[1.0, bad], [0.0, 1.0]])})


def test_over_a_margin_of_zero_or_below_is_infinite():
    matrices = {"only": torch.eye(2)}
    net, inputs, _ = problem()
    for gamma in (0.0, -1.0):
        assert log_spectral_product(matrices, gamma) == math.inf
        assert path_norm(net, inputs, gamma) == math.inf


def test_a_product_with_a_layer_of_zeros_is_refused():
    """As the last batch-norm of residual blocks is at initialization, in many networks."""
    matrices = {"first": torch.eye(2), "second": torch.zeros(2, 2), "norm": torch.zeros(3)}
    for product in (log_spectral_product, log_frobenius_product):
        with pytest.raises(UndefinedMeasureError, match=r"but got one whose weights \['second', 'norm'\] are zero"):
            product(matrices)
        with pytest.raises(ValueError, match="Expected argument `matrices` to hold at least one weight matrix"):
            product({})


def test_with_fewer_than_ten_samples_the_margin_is_the_smallest():
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert output_margin(nn.Identity(), logits, torch.zeros(3, dtype=torch.long)) == 1


def test_margins_at_a_layer_that_changes_its_input_in_place():
    net, inputs, targets = problem()
    expected = normalized_margins(net, inputs, targets, at="1")
    net[1] = nn.ReLU(inplace=True)
    torch.testing.assert_close(normalized_margins(net, inputs, targets, at="1"), expected)
    first = nn.Sequential(nn.ReLU(inplace=True), linear([[1.0], [2.0]]))
    values = torch.tensor([[-1.0], [2.0]]).double()
    normalized_margins(first, values, torch.tensor([1, 1]))
    assert values.tolist() == [[-1.0], [2.0]]


def test_margins_of_dictionaries_and_of_tokens():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(5, 3), nn.Linear(3, 2)

        def forward(self, tokens, shift=0.0):
            return self.last(self.table(tokens) + shift)

    net = Two().double()
    tokens, targets = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])
    shift = torch.randn(3, 3).double()
    at_input = normalized_margins(net, {"tokens": tokens, "shift": shift}, targets)
    torch.testing.assert_close(at_input, normalized_margins(net, (tokens, shift), targets, at="features"))
    with pytest.raises(
        UndefinedMeasureError, match="margin at the input is defined, but got inputs without a floating"
    ):
        normalized_margins(net, tokens, targets)


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        ("3", ValueError, 'Expected argument `at` to be "input", "features" or the name of a submodule, but got \'3\''),
        ("twice", UndefinedMeasureError, "one in which it is called more than once"),
        ("never", UndefinedMeasureError, "one in which it is not called"),
        ("features", UndefinedMeasureError, "one whose output is not that of an nn.Linear layer"),
    ],
)
def test_places_without_a_margin_are_refused(at, error, message):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.twice(torch.relu(self.twice(x))) * 2

    with pytest.raises(error, match=message):
        normalized_margins(Net(), torch.randn(4, 3), torch.zeros(4, dtype=torch.long), at=at)


def test_signature_needs_margins():
    with pytest.raises(ValueError, match=r"Expected argument `margins` to have shape \[N\]"):
        margin_signature(torch.empty(0))


# Perturbations


def test_one_zero_weight_does_not_lift_the_constraint():
    """Public code divides by the weights' magnitudes, and 0/0 switches its projection off."""
    net, inputs, targets = problem()
    options = {"rho": 0.5, "norm": "l2", "normalize_logits": False}
    before = float(worst_sharpness(net, inputs, targets, **options))
    smallest = net[0].weight.data.abs().flatten().argmin()
    net[0].weight.data.view(-1)[smallest] = 0.0
    assert float(worst_sharpness(net, inputs, targets, **options)) == pytest.approx(before, rel=0.2)


def test_frozen_parameters_are_not_perturbed():
    net, inputs, targets = problem()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    last = nn.Sequential(net[2])
    features = net[:2](inputs).detach()
    for measure in (average_sharpness, worst_sharpness):
        torch.testing.assert_close(measure(net, inputs, targets), measure(last, features, targets))


def test_more_steps_and_a_larger_ball_never_find_less():
    net, inputs, targets = problem()
    for norm in ("l2", "linf"):
        values = [float(worst_sharpness(net, inputs, targets, norm=norm, rho=rho)) for rho in (0.01, 0.02, 0.1)]
        assert 0 < values[0] < values[1] < values[2]
        steps = [float(worst_sharpness(net, inputs, targets, norm=norm, num_steps=n)) for n in (1, 20, 60)]
        assert steps[0] <= steps[1] * (1 + 1e-3)
        assert steps[1] <= steps[2] * (1 + 1e-3)


def test_a_loss_without_a_gradient_has_no_sharpness():
    net, inputs, targets = problem()
    flat = {"loss_fn": lambda outputs, targets: 0.0 * outputs.sum(), "normalize_logits": False}
    for norm in ("l2", "linf"):
        assert worst_sharpness(net, inputs, targets, norm=norm, **flat) == 0
        assert average_sharpness(net, inputs, targets, norm=norm, **flat) == 0


def test_an_accuracy_that_cannot_drop_warns():
    net = linear([[0.0], [0.0]])
    with pytest.warns(UserWarning, match="No weight noise up to σ = 2.0 drops the training accuracy by 0.1"):
        result = noise_tolerance(net, torch.zeros(20, 1).double(), torch.zeros(20, dtype=torch.long))
    assert not result.converged
    assert float(result.sigma) == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize(
    ("measure", "option", "value"),
    [
        (average_sharpness, "rho", 0.0),
        (average_sharpness, "norm", "l1"),
        (average_sharpness, "num_draws", 0),
        (worst_sharpness, "num_steps", 0),
        (noise_tolerance, "accuracy_drop", 0.0),
        (noise_tolerance, "num_draws", 0),
        (noise_tolerance, "eps", -1.0),
        (normalized_margins, "eps", -1.0),
        (output_margin, "fraction", 0.0),
        (hessian_trace, "num_products", 5),
        (weighted_hessian_trace, "num_products", 5),
        (hessian_trace, "method", "lanczos"),
        (gradient_signal_to_noise, "eps", -1.0),
    ],
)
def test_bad_options_are_named(measure, option, value):
    with pytest.raises(ValueError, match=f"Expected argument `{option}` to be .*, but got {value!r}"):
        measure(*problem(), **{option: value})


# Curvature and gradients


def test_relative_flatness_of_a_network_that_is_sure():
    """The difference of the two sums cancels in float64; in more digits it does not."""
    net, inputs, targets = problem()
    net[2].weight.data.mul_(300)
    net[2].bias.data.zero_()
    features, weight = net[:2](inputs).detach().numpy(), net[2].weight.detach().numpy()
    features, weight = features.astype(np.longdouble), weight.astype(np.longdouble)
    logits = features @ weight.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    difference = weight[None] - (p @ weight)[:, None]
    expected = ((features**2).sum(1) * (p * (difference**2).sum(2)).sum(1)).mean()
    found = relative_flatness(net, inputs, targets, normalize=False)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_of_gradients_whose_squares_underflow(dtype):
    """Class 0 is sure by 100 or by 400: all gradients are e^-300 times as large, their ratios the same."""
    _, inputs, targets = problem()
    values = []
    for margin in (100.0, 400.0):
        twin = nn.Sequential(*problem()[0]).to(dtype)
        twin[2].bias.data.copy_(torch.tensor([margin, 0.0, 0.0]))
        values.append(float(gradient_signal_to_noise(twin, inputs.to(dtype), torch.zeros_like(targets))))
    assert values[0] > 0
    assert values[1] == pytest.approx(values[0], rel=1e-9 if dtype == torch.float64 else 1e-3)


def test_gauss_newton_trace_of_a_network_that_is_sure():
    net = linear([[20.0, 0.0], [0.0, 20.0], [-20.0, 1.0]])
    inputs = torch.tensor([[2.0, 0.1], [1.0, 2.5]]).double()
    p = torch.softmax(net(inputs), 1).detach()
    pairs = torch.einsum("jk,jl->jkl", p, p) * (1 - torch.eye(3))  # Σ p (1 − p) without a difference
    expected = (inputs.square().sum(1) * pairs.sum((1, 2))).mean()
    assert expected < 1e-11
    torch.testing.assert_close(gauss_newton_trace(net, inputs), expected, rtol=1e-9, atol=0)


def test_no_signal_and_no_gradient():
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert gradient_noise_scale(rows @ rows.T) == math.inf
    assert gradient_noise_scale(rows @ rows.T, unbiased=True) < 0
    assert participation_ratio(torch.zeros(2, 2)).isnan()
    net, inputs, targets = problem()
    zero = {"loss_fn": lambda outputs, targets: 0.0 * outputs.sum(1)}
    assert gradient_signal_to_noise(net, inputs, targets, **zero).isnan()
    assert fisher_rao_norm(net, inputs, targets, **zero) == 0
    assert hessian_trace(net, inputs, targets, **zero).value == 0


@pytest.mark.parametrize("measure", [gradient_noise_scale, participation_ratio])
def test_a_gram_matrix_is_square_and_finite(measure):
    with pytest.raises(ValueError, match=r"Expected argument `gram` to be a square matrix \[N, N\]"):
        measure(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="Expected argument `gram` to be finite"):
        measure(torch.full((2, 2), math.nan))


def test_one_sample_has_no_noise():
    with pytest.raises(ValueError, match="the gradient noise scale is defined, but got one sample"):
        gradient_noise_scale(torch.ones(1, 1))


def test_the_evidence_tends_to_the_log_determinant():
    net, inputs, targets = problem(count=6)
    result = fisher_log_det(net, inputs, targets)
    eigenvalues = log_spectrum(result.gram, result.log_norms)
    tiny = 1e-14
    found = evidence_log_det(eigenvalues, delta=tiny) + 6 * math.log(tiny)
    torch.testing.assert_close(found, result.log_det, rtol=1e-6, atol=0)
    assert evidence_log_det(torch.tensor([-math.inf, 0.0]), delta=1.0) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="Expected argument `delta` to be a positive number, but got 0"):
        evidence_log_det(eigenvalues, delta=0)


# What is not defined


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.GELU(), nn.Sigmoid(), nn.Softmax(1)],
    ids=lambda m: type(m).__name__,
)
def test_a_path_norm_is_that_of_piecewise_linear_networks(layer):
    net, inputs, _ = problem()
    net.insert(1, layer.double())
    with pytest.raises(
        UndefinedMeasureError, match="path norm is defined, but got a network that is not piecewise linear"
    ):
        path_norm(net, inputs)


def test_max_pooling_and_biases_are_no_obstacle_to_a_path_norm():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    assert math.isfinite(path_norm(net, torch.randn(2, 1, 4, 4).double()))


def test_a_path_norm_takes_numbers():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(UndefinedMeasureError, match=r"but got inputs of torch\.int64, not floating-point numbers"):
        path_norm(net, torch.zeros(4, 2, dtype=torch.long))


@pytest.mark.parametrize("measure", [relative_flatness, output_margin, noise_tolerance])
def test_outputs_and_targets_are_logits_and_classes(measure):
    net, inputs, targets = problem()
    with pytest.raises(ValueError, match=r"class indices of shape \(12,\), but got torch.float64 of shape \(12, 3\)"):
        measure(net, inputs, torch.zeros(12, 3).double())
    with pytest.raises(ValueError, match="Expected class indices in `targets` to be 0…2, but got -1…-1"):
        measure(net, inputs, torch.full((12,), -1))
    net[2].bias.data.fill_(math.inf)
    with pytest.raises(NonFiniteError, match="Expected finite outputs"):
        measure(net, inputs, targets)
    with pytest.raises(ValueError, match=r"logits of shape \[N, K\], K ≥ 2, but got \(12, 1\)"):
        measure(nn.Sequential(nn.Linear(4, 1)).double(), inputs, targets)


def test_gauss_newton_needs_logits():
    with pytest.raises(ValueError, match=r"Expected the module to return logits of shape \[N, K\]"):
        gauss_newton_trace(nn.Flatten(0), torch.ones(3, 2))


def test_initial_weights_of_another_network_are_refused():
    net, inputs, _ = problem()
    with pytest.raises(
        ValueError, match="Expected argument `initial` to have the weights of `module`, but got another"
    ):
        distance_from_initialization(net, inputs, problem(width=5)[0].state_dict())
    with pytest.raises(
        ValueError, match="Expected argument `initial` to have the weights of `module`, but they differ"
    ):
        distance_from_initialization(net, inputs, problem(width=5)[0])

"""The measures on networks that no public code was run on, against oracles that share no code with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.nn import functional as F

from lightning_fisher.functional.measures import (
    MEASURES,
    average_sharpness,
    distance_from_initialization,
    fisher_rao_norm,
    fold_batch_norm,
    folded_norm,
    gauss_newton_trace,
    gradient_noise_scale,
    gradient_signal_to_noise,
    hessian_trace,
    log_frobenius_product,
    log_spectral_product,
    noise_tolerance,
    normalized_margins,
    participation_ratio,
    path_norm,
    relative_flatness,
    weight_matrices,
    weighted_hessian_trace,
    worst_sharpness,
)
from lightning_fisher.metrics import MeasureMetric
from tests.reference import measures_by_hand as by_hand
from tests.reference.dense_hessian import dense_hessian
from tests.reference.jacobian import jacobian
from tests.reference.measure_networks import build

both = pytest.mark.parametrize("name", ["c", "d", "smooth"])
EXACT = {"rel": 1e-10}


def test_a_folded_network_computes_the_same():
    net, inputs, _, _ = build("c")
    folded = fold_batch_norm(net, inputs)
    torch.testing.assert_close(folded(inputs), net(inputs), rtol=1e-12, atol=1e-12)
    assert isinstance(folded.bn2, torch.nn.Identity)  # its input is that of nothing else
    assert isinstance(folded.bn1, torch.nn.BatchNorm2d)  # the shortcut needs what comes before it
    assert isinstance(folded.bn3, torch.nn.BatchNorm2d)  # behind a sum
    for norm in (folded.bn1, folded.bn3):
        assert not norm.running_mean.any()


def test_norms_and_products():
    net, inputs, _, initial = build("c")
    matrices, before = by_hand.matrices_c(net), by_hand.matrices_c(initial)
    squares = [np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in matrices]
    found = weight_matrices(net, inputs)
    assert len(found) == 7
    assert float(log_spectral_product(found)) == pytest.approx(sum(math.log(s.max()) for s in squares), **EXACT)
    assert float(log_frobenius_product(found)) == pytest.approx(sum(math.log(s.sum()) for s in squares), **EXACT)
    assert float(folded_norm(net, inputs)) == pytest.approx(math.sqrt(sum(s.sum() for s in squares)), **EXACT)
    moved = math.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(matrices, before, strict=True)))
    assert float(distance_from_initialization(net, inputs, initial)) == pytest.approx(moved, **EXACT)


def test_norms_and_paths_of_convolutions_without_biases():
    net, inputs, _, initial = build("d")

    def tensors(net, square=False):
        """Kernels and biases with batch-norm in them, by hand."""
        made = []
        for conv, norm in ((net.conv1, net.bn1), (net.conv2, net.bn2)):
            weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
            bias = 0.0 if norm.bias is None else norm.bias
            scale = weight / torch.sqrt(norm.running_var + norm.eps)
            made += [conv.weight * scale.view(-1, 1, 1, 1), bias - norm.running_mean * scale]
        made += [net.fc1.weight, net.fc1.bias, net.fc.weight, net.fc.bias]
        return [tensor.detach() ** 2 if square else tensor.detach() for tensor in made]

    matrices, before = tensors(net)[::2], tensors(initial)[::2]
    squares = [np.linalg.svd(m.flatten(1).numpy(), compute_uv=False) ** 2 for m in matrices]
    found = weight_matrices(net, inputs)
    assert float(log_spectral_product(found)) == pytest.approx(sum(math.log(s.max()) for s in squares), **EXACT)
    assert float(log_frobenius_product(found)) == pytest.approx(sum(math.log(s.sum()) for s in squares), **EXACT)
    assert float(folded_norm(net, inputs)) == pytest.approx(math.sqrt(sum(s.sum() for s in squares)), **EXACT)
    moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(matrices, before, strict=True)))
    assert float(distance_from_initialization(net, inputs, initial)) == pytest.approx(moved, **EXACT)
    k1, b1, k2, b2, w1, c1, w2, c2 = tensors(net, square=True)
    x = F.conv2d(torch.ones(1, 1, 6, 6, dtype=torch.float64), k1, b1)
    x = F.conv2d(x, k2, b2, stride=2).flatten(1) @ w1.T + c1
    assert float(path_norm(net, inputs)) == pytest.approx(float((x @ w2.T + c2).sum()), **EXACT)


def test_path_norm():
    net, inputs, _, _ = build("c")
    assert float(path_norm(net, inputs)) == pytest.approx(by_hand.path_norm_c(net), **EXACT)


@both
def test_margins(name):
    net, inputs, targets, _ = build(name)
    expected = by_hand.input_margins(net, inputs, targets)
    assert (expected < 0).sum() >= 2
    np.testing.assert_allclose(normalized_margins(net, inputs, targets), expected, rtol=1e-9)


@both
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_average_sharpness(name, norm):
    net, inputs, targets, _ = build(name)
    weights, rises = by_hand.flat(net), []
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        draws = []
        for parameter in net.parameters():
            options = {"generator": generator, "dtype": torch.float64}
            draw = torch.randn(parameter.shape, **options) if norm == "l2" else torch.rand(parameter.shape, **options)
            draws.append((draw if norm == "l2" else 2 * draw - 1).flatten())
        moved = weights + 0.2 * weights.abs() * torch.cat(draws)
        rises.append(
            by_hand.loss_at(net, inputs, targets, moved, True) - by_hand.loss_at(net, inputs, targets, weights, True)
        )
    found = average_sharpness(net, inputs, targets, rho=0.2, norm=norm, num_draws=4, seed=3)
    assert float(found) == pytest.approx(float(sum(rises)) / 4, **EXACT)


@both
def test_worst_sharpness_is_near_a_constrained_maximum(name):
    """In the box |u| ≤ ρ, by L-BFGS-B from several points."""
    net, inputs, targets, _ = build(name)
    weights, rho = by_hand.flat(net), 0.02
    clean = float(by_hand.loss_at(net, inputs, targets, weights))

    def negative(u):
        u = torch.tensor(u, requires_grad=True)
        loss = by_hand.loss_at(net, inputs, targets, weights + weights.abs() * u)
        (gradient,) = torch.autograd.grad(loss, u)
        return -float(loss.detach()), -gradient.numpy()

    bounds, random = [(-rho, rho)] * len(weights), np.random.default_rng(0)
    starts = [np.zeros(len(weights)), *random.uniform(-rho, rho, (2, len(weights)))]
    best = max(-scipy.optimize.minimize(negative, s, jac=True, method="L-BFGS-B", bounds=bounds).fun for s in starts)
    found = float(worst_sharpness(net, inputs, targets, rho=rho, normalize_logits=False))
    assert 0.98 * (best - clean) < found < 1.001 * (best - clean)


@both
def test_relative_flatness(name):
    net, inputs, targets, _ = build(name)
    layer = net.last if name == "smooth" else net.fc
    kept = []
    handle = layer.register_forward_hook(lambda _, received, output: kept.append(received[0].detach()))
    net(inputs)
    handle.remove()
    expected = by_hand.relative_flatness(net, layer, kept[0], targets)
    assert float(relative_flatness(net, inputs, targets, normalize=False)) == pytest.approx(expected, **EXACT)


@both
def test_traces(name):
    net, inputs, targets, _ = build(name)
    hessian, weights = dense_hessian(net, inputs, targets), by_hand.flat(net)
    size = len(weights)
    trace = float(hessian.trace())
    relative = float((weights.square() * hessian.diagonal()).sum())
    for method in ("auto", "hutch++"):
        found = hessian_trace(net, inputs, targets, num_products=size, method=method)
        assert float(found.value) == pytest.approx(trace, **EXACT)
        weighted = weighted_hessian_trace(net, inputs, targets, num_products=size, method=method)
        assert float(weighted.value) == pytest.approx(relative, **EXACT)
    gauss_newton = float(gauss_newton_trace(net, inputs, chunk_size=7))
    assert gauss_newton == pytest.approx(by_hand.gauss_newton_trace(net, inputs), **EXACT)
    # Equal for a piecewise linear network; not with tanh and a layer used twice.
    assert (abs(gauss_newton / trace - 1) < 1e-9) == (name != "smooth")


@both
def test_statistics_of_the_gradients(name):
    net, inputs, targets, _ = build(name)
    rows = jacobian(net, inputs, targets)
    mean, count = rows.mean(0), len(rows)
    variance = rows.var(0, correction=0)
    live = (rows != 0).any(0)
    found = gradient_signal_to_noise(net, inputs, targets)
    assert float(found) == pytest.approx(float((mean.square() / variance)[live].mean()), rel=1e-8)
    expected = float((rows @ by_hand.flat(net)).square().mean().sqrt())
    assert float(fisher_rao_norm(net, inputs, targets)) == pytest.approx(expected, **EXACT)
    gram = rows @ rows.T
    noise = float(variance.sum() * count / (count - 1))
    squared = float(mean.square().sum())
    assert float(gradient_noise_scale(gram)) == pytest.approx(noise / squared, rel=1e-9)
    unbiased = noise / (squared - noise / count)
    assert float(gradient_noise_scale(gram, unbiased=True)) == pytest.approx(unbiased, rel=1e-8)
    values = np.linalg.eigvalsh(gram.numpy())
    assert float(participation_ratio(gram)) == pytest.approx(values.sum() ** 2 / (values**2).sum(), **EXACT)


@pytest.mark.parametrize("relative", [False, True])
def test_noise_tolerance_is_where_the_accuracy_drops_by_a_tenth(relative):
    """With noise of its own, drawn otherwise, on the folded network."""
    net, inputs, targets, _ = build("c")
    sigma = float(noise_tolerance(net, inputs, targets, relative=relative, num_draws=100).sigma)
    folded = fold_batch_norm(net, inputs)
    weights = [parameter.detach().clone() for parameter in folded.parameters()]
    torch.manual_seed(0)
    drops = []
    with torch.no_grad():
        clean = (net(inputs).argmax(1) == targets).double().mean()
        for _ in range(400):
            for parameter, weight in zip(folded.parameters(), weights, strict=True):
                noise = sigma * torch.randn_like(weight)
                parameter.copy_(weight * (1 + noise) if relative else weight + noise)
            drops.append(float(clean - (folded(inputs).argmax(1) == targets).double().mean()))
    error = np.std(drops) / 20 + np.std(drops) / 10  # of this mean and of the search's
    assert np.mean(drops) == pytest.approx(0.1, abs=0.01 + 3 * error)


def test_measures_that_a_network_has_not_are_nan_and_the_others_are_computed():
    net, inputs, targets, _ = build("smooth")
    metric = MeasureMetric("recommended")
    with pytest.warns(UserWarning, match="path norm is defined, but got a network that is not piecewise linear") as log:
        metric.update(net, inputs, targets)
    assert len(log) == 2
    result = metric.compute()
    undefined = {name for name in metric.states if result[name].isnan()}
    assert undefined == {"path_norm", "path_norm_over_margin"}


@both
@pytest.mark.filterwarnings("ignore:Expected a network for which the path norm is defined")
def test_float32_gives_the_values_of_float64(name):
    net, inputs, targets, initial = build(name)
    chosen = sorted(set(MEASURES) - {"gamma", "evidence_log_det"})  # differences of nearly dependent gradients
    wide = MeasureMetric(chosen, initial=initial).forward(net, inputs, targets)
    narrow = MeasureMetric(chosen, initial=initial.float()).forward(net.float(), inputs.float(), targets)
    for measure in chosen:
        torch.testing.assert_close(narrow[measure], wide[measure], rtol=2e-3, atol=0, equal_nan=True, msg=measure)

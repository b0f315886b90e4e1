"""Inputs, weights, losses and gradients that are no numbers: an error that names the samples, or nan with a warning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher import FisherMetric
from lightning_fisher.functional import (
    NonFiniteError,
    exact_gamma,
    fisher_log_det,
    frobenius_norm,
    gram_matrix,
    hessian_frobenius_norm,
    hessian_spectral_radius,
    log_det,
    robustness,
    spectral_radius,
)
from lightning_fisher.metrics import (
    HessianFrobeniusMetric,
    HessianSpectralRadiusMetric,
    RobustnessMetric,
    local_minima_metrics,
)
from tests.functional.snapshot import changes, snapshot
from tests.functional.tiny import N, X, Y, mlp
from tests.reference.jacobian import jacobian
from tests.reference.logdet import jacobian_log_det

BAD = 3


def bad_input(value, sample=BAD):
    x = X.clone()
    x[sample, 2] = value
    return x


def diverged(value):
    net = mlp()
    with torch.no_grad():
        net[2].weight[0, 0] = value
    return net


def huge():
    """Gradients of 1e25, whose squares are beyond float32."""
    net = mlp()
    with torch.no_grad():
        net[2].weight.mul_(1e25)
    return net


def nan_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none") * torch.where(
        outputs[:, 0] > 1e9, 1.0, math.nan
    )


SITUATIONS = {
    "nan in an input": (lambda: (mlp(), bad_input(math.nan), Y), {}, [BAD]),
    "nan in the first input": (lambda: (mlp(), bad_input(math.nan, 0), Y), {}, [0]),
    "infinite input, finite output": (lambda: (mlp(), bad_input(math.inf), Y), {}, [BAD]),
    "the same, in the first input": (lambda: (mlp(), bad_input(math.inf, 0), Y), {}, [0]),
    "nan weight": (lambda: (diverged(math.nan), X, Y), {}, [0, 1, 2, 3, 4]),
    "infinite weight": (lambda: (diverged(math.inf), X, Y), {}, [0, 1, 2, 3, 4]),
    "gradients that overflow": (lambda: (huge(), X, Y), {}, [0, 1, 2, 3, 4]),
    "nan loss": (lambda: (mlp(), X, Y), {"loss_fn": nan_loss}, [0, 1, 2, 3, 4]),
    "nan in soft labels": (
        lambda: (mlp(), X, torch.eye(3)[Y].index_fill(0, torch.tensor([BAD]), math.nan)),
        {},
        [BAD],
    ),
    "in small chunks": (lambda: (mlp(), bad_input(math.inf), Y), {"chunk_size": 2}, [BAD]),
    "batch statistics": (lambda: (mlp(), bad_input(math.inf), Y), {"batch_norm": "batch", "chunk_size": 2}, [2, 3]),
    "logit norm": (lambda: (mlp(), bad_input(math.nan), Y), {"logit_norm": 0.04}, [BAD]),
}
each_situation = pytest.mark.parametrize(("build", "options", "samples"), SITUATIONS.values(), ids=SITUATIONS)


@each_situation
def test_what_is_not_finite_is_an_error_that_names_the_samples(build, options, samples):
    module, inputs, targets = build()
    before = snapshot(module)
    calls = [gram_matrix, fisher_log_det, lambda *a, **k: fisher_log_det(*a, rank_policy="pseudo", **k)]
    for call in calls:
        with pytest.raises(
            NonFiniteError, match=r"Expected finite .* infinite or undefined: has the network"
        ) as caught:
            call(module, inputs, targets, **options)
        assert caught.value.samples == samples
        assert ", ".join(map(str, samples)) in str(caught.value)
    assert changes(before, snapshot(module)) == []


@pytest.mark.parametrize(
    "call",
    [
        exact_gamma,
        lambda *a: hessian_frobenius_norm(*a, num_probes=3),
        lambda *a: hessian_frobenius_norm(*a, num_probes=1000),
        hessian_spectral_radius,
        lambda module, x, _: robustness(module, x),
        lambda module, x, _: robustness(module, x, method="power"),
        lambda module, x, _: robustness(module, x, chunk_size=2),
    ],
    ids=["exact", "hessian", "hessian, exact", "spectral radius", "robustness", "power iteration", "chunks"],
)
@pytest.mark.parametrize("situation", ["nan in an input", "nan weight"])
def test_the_other_functions_too(call, situation):
    build, _, samples = SITUATIONS[situation]
    with pytest.raises(NonFiniteError) as caught:
        call(*build())
    first = caught.value.samples  # as far as known: those of the first chunk that has some
    assert first == samples[: len(first)]


@pytest.mark.parametrize("call", [log_det, frobenius_norm, spectral_radius])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_functions_of_a_gram_matrix(call, value):
    with pytest.raises(ValueError, match=r"Expected argument `gram` to be finite"):
        call(torch.full((2, 2), value))


def test_large_numbers_are_no_infinities():
    """Float64 gradients of 1e120: ξ overflows nowhere on the way to its log-determinant."""
    module = mlp().double()
    scale = lambda z, y: 1e120 * nn.functional.cross_entropy(z, y, reduction="none")  # noqa: E731
    got = fisher_log_det(module, X.double(), Y, loss_fn=scale)
    expected = jacobian_log_det(jacobian(module, X.double(), Y)).log_det + 2 * N * math.log(1e120)
    assert got.log_det.item() == pytest.approx(expected, rel=1e-12)


@each_situation
def test_a_metric_counts_the_subset_as_nan(build, options, samples):
    metric = FisherMetric(**options)
    module, inputs, targets = build()
    with pytest.warns(UserWarning, match=r"infinite or undefined.*FisherMetric counts the subset as nan"):
        metric.update(module, inputs, targets)
    assert all(math.isnan(value) for value in metric.compute().values())


@each_situation
def test_or_raises_under_the_strict_policy(build, options, samples):
    metric = FisherMetric(rank_policy="error", **options)
    with pytest.raises(NonFiniteError):
        metric.update(*build())


def test_one_bad_subset_is_not_averaged_away():
    metric = FisherMetric()
    metric.update(mlp(), X, Y)
    with pytest.warns(UserWarning, match="subset as nan"):
        metric.update(mlp(), bad_input(math.nan), Y)
    assert math.isnan(metric.compute()["gamma"])
    assert metric.subsets("subset_size").tolist() == [N, N]  # known all the same
    metric.reset()
    metric.update(mlp(), X, Y)
    assert math.isfinite(metric.compute()["gamma"])


@pytest.mark.filterwarnings("ignore:.*counts the subset as nan:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: local_minima_metrics(hessian=True),
        RobustnessMetric,
        lambda: HessianFrobeniusMetric(num_probes=2),
        HessianSpectralRadiusMetric,
    ],
    ids=["collection", "robustness", "Frobenius", "spectral"],
)
def test_all_metrics_go_on(make):
    """Every process gets through its updates, so that none waits for one that died of its subset."""
    metric = make()
    for value in (math.nan, 0.5):
        metric.update(mlp(), bad_input(value), Y)
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values
    assert all(math.isnan(value) for value in values.values()), values

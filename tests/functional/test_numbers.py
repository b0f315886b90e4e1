"""Numbers that are none, and matrices without information: an error that says so, or nan with a warning.

Rank deficiency (duplicate samples, N > W, single zero gradients) is held by `test_logdet`, frozen, tied and unused
parameters by the cases of `tests.reference.cases_parameters`.
"""

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
    penalty_gradient,
    robustness,
    spectral_radius,
)
from lightning_fisher.metrics import (
    HessianFrobeniusMetric,
    HessianSpectralRadiusMetric,
    RobustnessMetric,
    local_minima_metrics,
)
from tests.functional.compare import gram_error
from tests.functional.snapshot import changes, snapshot
from tests.reference.jacobian import gram, jacobian
from tests.reference.logdet import jacobian_log_det

N, BAD = 5, 3
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 1, 0])


def mlp():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


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


# --- nothing to measure ------------------------------------------------------------------------------------------


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x).detach()


NOTHING = {
    "a single logit": lambda: (nn.Linear(6, 1), X, torch.zeros(N, dtype=torch.long)),
    "no sample has a label": lambda: (mlp(), X, torch.full((N,), -100)),
    "outputs without a graph": lambda: (Detached(), X, Y),
    "a single sample, and it has no gradient": lambda: (mlp(), X[:1], torch.tensor([-100])),
}


@pytest.mark.parametrize("build", NOTHING.values(), ids=NOTHING)
def test_gradients_that_are_all_zero_have_no_determinant_at_all(build):
    """An empty sum would be 0, and look like a value."""
    module, inputs, targets = build()
    with pytest.raises(ValueError, match=r"rank 0 \(zero gradients of samples \[0"):
        fisher_log_det(module, inputs, targets)
    with pytest.warns(UserWarning, match=r"rank 0 .*reported as nan"):
        got = fisher_log_det(module, inputs, targets, rank_policy="pseudo")
    assert all(math.isnan(value) for value in (got.log_det, got.magnitude, got.direction))
    assert int(got.rank) == 0
    metric = FisherMetric()
    with pytest.warns(UserWarning, match="reported as nan"):
        metric.update(module, inputs, targets)
    assert math.isnan(metric.compute()["gamma"])
    assert torch.equal(gram_matrix(module, inputs, targets), torch.zeros(len(inputs), len(inputs)).double())


def test_the_same_of_a_matrix():
    with pytest.warns(UserWarning, match=r"rank 0 .*reported as nan"):
        assert math.isnan(log_det(torch.zeros(3, 3), rank_policy="pseudo"))


def test_data_of_one_class_are_nothing_special():
    targets = torch.ones(N, dtype=torch.long)
    expected = jacobian_log_det(jacobian(mlp().double(), X.double(), targets)).log_det
    assert fisher_log_det(mlp(), X, targets).log_det.item() == pytest.approx(expected, abs=1e-5)


def test_no_samples():
    for call in (gram_matrix, fisher_log_det, FisherMetric().update, penalty_gradient):
        with pytest.raises(ValueError, match="at least one"):
            call(mlp(), X[:0], Y[:0])


# --- parameters of other kinds ---------------------------------------------------------------------------------


class ComplexWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


class SparseWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6).to_sparse())
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.sparse.mm(self.weight, x.T).T)


class HalfFrozen(nn.Module):
    """A frozen body in half precision under a float32 head; the gradients are those of the head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8).bfloat16().requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x.bfloat16()).to(self.head.weight.dtype)))


CALLS = {
    "gram_matrix": gram_matrix,
    "fisher_log_det": fisher_log_det,
    "FisherMetric": lambda *a: FisherMetric().update(*a),
    "penalty_gradient": lambda *a: penalty_gradient(*a, num_sub_batches=2),
    "hessian_frobenius_norm": hessian_frobenius_norm,
    "hessian_spectral_radius": hessian_spectral_radius,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (ComplexWeight, ["real", "complex64", "view_as_complex"]),
        (SparseWeight, ["dense", "sparse_coo"]),
        (lambda: mlp().bfloat16(), ["float32", "bfloat16", "mixed precision"]),
        (lambda: mlp().half(), ["float32", "float16", "mixed precision"]),
        (lambda: mlp().requires_grad_(False), ["parameters that require gradients"]),
        (nn.Flatten, ["parameters that require gradients"]),
    ],
    ids=["complex", "sparse", "bfloat16", "float16", "all frozen", "none"],
)
def test_parameters_that_cannot_be_used_are_refused(call, make, texts):
    with pytest.raises(ValueError, match="Expected") as caught:
        call(make(), X, Y)
    assert all(text in str(caught.value) for text in texts), caught.value


@pytest.mark.parametrize("frozen", ["half precision", "complex", "sparse", "integer"])
def test_frozen_parameters_may_be_of_any_kind(frozen):
    module = HalfFrozen()
    if frozen == "complex":
        module.other = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    elif frozen == "sparse":
        module.other = nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)
    elif frozen == "integer":
        module.other = nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)
    head = nn.Linear(8, 3)
    head.load_state_dict(module.head.state_dict())
    features = torch.tanh(module.body(X.bfloat16()).float())
    expected = gram(jacobian(head.double(), features.double(), Y))
    assert gram_error(gram_matrix(module, X, Y), expected) < 1e-5
    _, gradients = penalty_gradient(module, X, Y, num_sub_batches=2)
    moved = [name for (name, _), g in zip(module.named_parameters(), gradients, strict=True) if g.abs().sum() > 0]
    assert moved == ["head.weight", "head.bias"]


def test_requires_grad_changed_between_calls():
    module = mlp()
    whole = gram_matrix(module, X, Y)
    module[0].requires_grad_(False)
    part = gram_matrix(module, X, Y)
    module[0].requires_grad_(True)
    module[2].requires_grad_(False)
    rest = gram_matrix(module, X, Y)
    assert gram_error(part + rest, whole) < 1e-6
    assert gram_error(part, whole) > 1e-2

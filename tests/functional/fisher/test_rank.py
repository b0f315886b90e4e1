"""Rank of a Gram matrix made by float32 passes: real eigenvalues stay, zeros go, and where float32 can't tell it asks.

The oracle is a loop of single-sample backward passes in float64.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional import fisher_log_det, gram_matrix, log_det
from lightning_fisher.metrics import FisherMetric


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def cosines(module, inputs, targets):
    """Eigenvalues of C and ``Σ 2 ln‖∇ℓ‖``, from J row by row in float64."""
    module = copy.deepcopy(module).double()
    rows = []
    for j in range(len(targets)):
        loss = cross_entropy(module(inputs[j : j + 1].double()), targets[j : j + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    rows = torch.stack(rows)
    norms = rows.norm(dim=1, keepdim=True)
    unit = rows / norms
    return torch.linalg.eigvalsh(unit @ unit.T), 2 * norms.log().sum()


def correlated(n, d, generator):
    """Inputs near a plane: gradients that nearly depend on each other, eigenvalues of C over five decades."""
    plane = torch.randn(n, 3, generator=generator) @ torch.randn(3, d, generator=generator)
    return plane + 0.05 * torch.randn(n, d, generator=generator)


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5)), (20,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.Tanh(), nn.Conv2d(16, 24, 3), nn.Tanh(), nn.Flatten(), nn.Linear(384, 5)
        ),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [300, 1000])
def test_real_eigenvalues_are_not_taken_for_zero(name, count):
    build, shape = NETWORKS[name]
    module, generator = seeded(build), torch.Generator().manual_seed(1)
    inputs = correlated(count, torch.Size(shape).numel(), generator).reshape(count, *shape)
    targets = torch.randint(5, (count,), generator=generator)
    values, magnitude = cosines(module, inputs, targets)
    assert 0 < values[0] < count * torch.finfo(torch.float32).eps * values[-1]  # what was taken for zero once
    expected = float(values.log().sum() + magnitude)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float64 passes may be needed
        got = fisher_log_det(module, inputs, targets)
    assert int(got.rank) == count
    error = 1e-6 * float(values.log().sum().abs() + magnitude.abs())  # of what is added up, which may cancel
    assert got.log_det.item() == pytest.approx(expected, abs=error)
    metric = FisherMetric()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update(module, inputs, targets)
    assert metric.compute()["gamma"].item() == pytest.approx(expected, abs=error)


def deficient():
    """``(module, inputs, targets, rank)``: too few parameters, or samples twice."""
    generator = torch.Generator().manual_seed(2)
    linear = seeded(lambda: nn.Linear(3, 2))
    yield "linear", linear, torch.randn(20, 3, generator=generator), torch.arange(20) % 2, 4
    many = torch.randn(600, 3, generator=generator)
    yield "linear, many", linear, many, torch.arange(600) % 2, 4
    conv = seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)))
    inputs = torch.randn(30, 1, 5, 5, generator=generator)
    inputs[20:] = inputs[:10]
    targets = torch.arange(30) % 3
    targets[20:] = targets[:10]
    yield "twice", conv, inputs, targets, 20
    norm = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)))
    inputs, targets = torch.randn(200, 16, generator=generator), torch.arange(200) % 4
    inputs[100:], targets[100:] = inputs[:100], targets[:100]
    yield "half twice", norm, inputs, targets, 100


@pytest.mark.parametrize(
    ("module", "inputs", "targets", "rank"), [pytest.param(*case[1:], id=case[0]) for case in deficient()]
)
@pytest.mark.filterwarnings("ignore:The Gram matrix")
def test_zeros_are_not_taken_for_eigenvalues(module, inputs, targets, rank):
    values, magnitude = cosines(module, inputs, targets)
    expected = float(values[-rank:].log().sum() + magnitude)
    got = fisher_log_det(module, inputs, targets, rank_policy="pseudo")
    assert int(got.rank) == rank
    assert got.log_det.item() == pytest.approx(expected, rel=1e-6)
    gram = gram_matrix(module, inputs, targets)
    assert gram.dtype == torch.float64
    for same in (gram, gram.float()):  # the matrix knows what made it, or shows it by its dtype
        assert log_det(same, rank_policy="pseudo").item() == pytest.approx(expected, rel=1e-5)
        with pytest.raises(ValueError, match=f"rank {rank} "):
            log_det(same)
    with pytest.raises(ValueError, match=f"rank {rank} "):
        fisher_log_det(module, inputs, targets)


def test_a_copy_of_the_matrix_shows_its_noise_by_negative_eigenvalues():
    _, module, inputs, targets, rank = next(deficient())
    gram = gram_matrix(module, inputs, targets).clone()
    with pytest.raises(ValueError, match=f"rank {rank} "):
        log_det(gram)


def test_where_float32_cannot_tell_float64_passes_do():
    """Two samples that differ by 1e-4: an eigenvalue of 1e-8, real and below the noise of float32."""
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    inputs = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    inputs[5] = inputs[4] + 3e-4
    targets = torch.tensor([0, 1, 2, 0, 1, 1])
    values, magnitude = cosines(module, inputs, targets)
    assert 1e-12 < values[0] < 1e-6
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.warns(UserWarning, match="passes in float64"):
        got = fisher_log_det(module, inputs, targets)
    assert got.log_det.item() == pytest.approx(float(values.log().sum() + magnitude), rel=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_module_without_a_float64_form_keeps_the_answer_of_float32():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x):
            return self.net(x.float())

    module = seeded(Single)
    with pytest.raises(ValueError, match="rank 4 "):
        fisher_log_det(module, torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2)


def test_samples_that_interact_by_less_than_float32_shows_are_refused_where_float64_has_to_decide():
    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.body(x).tanh()
            return self.out(h + 1e-6 * (h.mean(0) - h))

    module = seeded(Coupled)
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    x[1] = x[0] + 1e-4
    gram_matrix(module, x, torch.tensor([0, 0, 1, 2, 1, 0]))
    with pytest.raises(InteractionError):
        fisher_log_det(module, x, torch.tensor([0, 0, 1, 2, 1, 0]), rank_policy="pseudo")


def test_attributes_that_a_pass_keeps_are_no_interaction_in_float64():
    """A cache of what was computed from weights, with its graph: every pass starts without it."""

    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
            self.cache = {}

        def forward(self, x):
            if "weight" not in self.cache:
                self.cache["weight"] = self.body.weight.sinh()
            h = torch.nn.functional.linear(x, self.cache["weight"], self.body.bias).tanh()
            return self.out(h) + (1e-3 * len(x) if x.dtype == torch.float32 else 0.0)

    module = seeded(Caching)
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    found = gram_matrix(module, x, torch.arange(6) % 3)  # the difference in float32 is settled in float64
    assert found.isfinite().all()
    assert not module.cache

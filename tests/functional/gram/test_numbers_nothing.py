"""Gradients that are all zero, data of one class, no samples.

Rank deficiency (duplicate samples, N > W, single zero gradients) is held by `test_logdet`.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher import FisherMetric
from lightning_fisher.functional import fisher_log_det, gram_matrix, log_det, penalty_gradient
from tests.functional.tiny import N, X, Y, mlp
from tests.reference.jacobian import jacobian
from tests.reference.logdet import jacobian_log_det

NOTHING = {
    "a single logit": lambda: (nn.Linear(6, 1), X, torch.zeros(N, dtype=torch.long)),
    "no sample has a label": lambda: (mlp(), X, torch.full((N,), -100)),
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

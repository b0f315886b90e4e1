"""The public functions against arrays computed by the authors' own code, in float64.

The small network ships with the tests. For their WRN-28-2 set ``INFOMCR_WRN28_2`` to the path of
``infomcr_wrn28_2.npz`` and run ``pytest -m slow``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lightning_fisher.functional import fisher_log_det, gram_matrix, log_det, penalty_gradient
from tests.functional.compare import relative_error
from tests.reference.infomcr import VARIANTS, Reference
from tests.reference.penalty import loss_and_gradient

SMALL = Path(__file__).parents[1] / "data" / "infomcr_small.npz"
VARIABLE = "INFOMCR_WRN28_2"


@pytest.fixture(scope="module", params=["small", pytest.param("wrn28_2", marks=pytest.mark.slow)])
def reference(request):
    if request.param == "small":
        return Reference(SMALL)
    path = os.environ.get(VARIABLE)
    if not path:
        pytest.skip(f"set {VARIABLE} to the path of infomcr_wrn28_2.npz")
    return Reference(path)


def test_transcription_logits(reference):
    with torch.no_grad():
        logits = reference.net.eval()(reference.batch("gram")[0])
    assert relative_error(logits, reference.tensor("eval/logits")) < 1e-12


def test_transcription_loss_and_gradient(reference):
    loss, grads = loss_and_gradient(reference.net.train(), *reference.batch("penalty"))
    assert loss == pytest.approx(reference.scalar("plain/loss"), rel=1e-12)
    expected = reference.gradients("plain/grad")
    assert sorted(expected) == sorted(name for name, _ in reference.net.named_parameters())
    for (name, _), grad in zip(reference.net.named_parameters(), grads, strict=True):
        assert relative_error(grad, expected[name]) < 1e-11, name


@pytest.mark.parametrize("alpha", ["0.01", "0.0001"])
def test_penalty(reference, alpha):
    images, labels = reference.batch("penalty")
    value, grads = penalty_gradient(reference.net.train(), images, labels, alpha=float(alpha), num_sub_batches=8)
    assert value.item() == pytest.approx(reference.scalar(f"penalty/R_alpha{alpha}"), rel=1e-9)
    expected = reference.gradients(f"penalty/grad_alpha{alpha}")
    for (name, _), grad in zip(reference.net.named_parameters(), grads, strict=True):
        assert relative_error(grad, expected[name]) < 1e-8, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_gram_and_log_determinant(reference, variant):
    images, labels = reference.batch("gram")
    got = gram_matrix(reference.net, images, labels, **VARIANTS[variant])
    assert relative_error(got, reference.tensor(f"gram/{variant}/xi")) < 1e-9
    expected = 2 * reference.scalar(f"gram/{variant}/sum_log_singular_values")
    assert log_det(got).item() == pytest.approx(expected, abs=1e-6, rel=0)
    result = fisher_log_det(reference.net, images, labels, **VARIANTS[variant])
    assert result.log_det.item() == pytest.approx(expected, abs=1e-6, rel=0)
    assert (result.magnitude + result.direction).item() == pytest.approx(expected, abs=1e-6, rel=0)

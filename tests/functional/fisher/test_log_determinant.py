"""log_det and fisher_log_det against QR of J, and what they do when J has no full row rank."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from lightning_fisher.functional import FisherLogDet, fisher_log_det, gram_matrix, log_det
from tests.functional.compare import gram_error
from tests.reference.cases import BATCH_NORM_CASES, CASES, REFUSED, by_name, each
from tests.reference.coupled import coupled_jacobian
from tests.reference.jacobian import gram, jacobian
from tests.reference.logdet import jacobian_log_det, pseudo_log_det

FULL_RANK = [case for case in CASES if case.full_rank]
DEFICIENT = [case for case in CASES if not case.full_rank]


def scaled_rows(n=12, width=40, decades=9.0):
    """A J whose rows differ by orders of magnitude, as gradients near a minimum do."""
    return torch.randn(n, width, dtype=torch.float64) * 10 ** torch.linspace(0, -decades, n).double()[:, None]


def unit_gram(rows):
    rows = rows / rows.norm(dim=1, keepdim=True)
    return gram(rows)


@each(FULL_RANK)
def test_fisher_log_det_float64(case):
    module, inputs, targets = case.build()
    rows = jacobian(module, inputs, targets, loss_fn=case.loss_fn)
    expected = jacobian_log_det(rows)
    got = fisher_log_det(module, inputs, targets, loss_fn=case.loss_fn)
    assert isinstance(got, FisherLogDet)
    assert got.log_det.dtype == torch.float64
    assert got.log_det.shape == ()
    for name in ("log_det", "magnitude", "direction"):
        assert getattr(got, name).item() == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-9), name
    assert torch.allclose(got.log_norms, rows.norm(dim=1).log(), rtol=1e-9, atol=1e-9)
    assert gram_error(got.gram, unit_gram(rows)) < 1e-9
    assert int(got.rank) == len(targets)


@each(FULL_RANK)
def test_fisher_log_det_float32(case):
    module, inputs, targets = case.build(torch.float32)
    expected = jacobian_log_det(jacobian(module, inputs, targets, loss_fn=case.loss_fn))
    got = fisher_log_det(module, inputs, targets, loss_fn=case.loss_fn)
    scale = abs(expected.magnitude) + abs(expected.direction)
    assert got.log_det.dtype == torch.float64
    assert abs(got.log_det.item() - expected.log_det) < 1e-5 * scale


@each([case for case in BATCH_NORM_CASES if case.name != "batch_norm1d_signals"])
def test_fisher_log_det_coupled(case):
    module, inputs, targets = case.build()
    options = {"chunk_size": 3, "logit_norm": 0.04}
    expected = jacobian_log_det(coupled_jacobian(module, inputs, targets, **options))
    got = fisher_log_det(module, inputs, targets, batch_norm="batch", **options)
    assert got.log_det.item() == pytest.approx(expected.log_det, rel=1e-9)


def test_log_det_of_rows_over_many_decades():
    rows = scaled_rows()
    assert log_det(gram(rows)).item() == pytest.approx(jacobian_log_det(rows).log_det, rel=1e-11)


def test_log_det_of_a_float32_gram_is_float64():
    rows = scaled_rows(decades=3.0)
    got = log_det(gram(rows).float())
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(jacobian_log_det(rows).log_det, rel=1e-5)


def test_log_det_agrees_with_fisher_log_det():
    module, inputs, targets = by_name("conv2d_deep").build()
    expected = fisher_log_det(module, inputs, targets).log_det.item()
    assert log_det(gram_matrix(module, inputs, targets)).item() == pytest.approx(expected, rel=1e-12)


def test_one_sample():
    module, inputs, targets = by_name("mlp_one_sample").build()
    got = fisher_log_det(module, inputs, targets)
    assert got.direction.item() == pytest.approx(0.0, abs=1e-15)
    norm = jacobian(module, inputs, targets).norm()
    assert got.log_det.item() == pytest.approx(2 * math.log(norm), rel=1e-12)


@each(DEFICIENT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_rank_deficiency_is_an_error_by_default(case, dtype):
    module, inputs, targets = case.build(dtype)
    rank = true_rank(jacobian(module, inputs, targets))
    with pytest.raises(ValueError, match=rf"(?s)rank.*{rank}.*(pseudo|fewer|duplicate)"):
        fisher_log_det(module, inputs, targets)
    with pytest.raises(ValueError, match=rf"(?s)rank.*{rank}.*(pseudo|fewer|duplicate)"):
        log_det(gram(jacobian(module, inputs, targets)))


def true_rank(rows):
    norms = rows.norm(dim=1)
    return int(torch.linalg.matrix_rank(rows[norms > 0] / norms[norms > 0, None]))


def documented_pseudo_log_det(rows):
    """``sum_j ln xi_jj`` over non-zero rows and ``ln|C|+`` over the non-zero eigenvalues of C."""
    norms = rows.norm(dim=1)
    kept = rows[norms > 0] / norms[norms > 0, None]
    return 2 * norms[norms > 0].log().sum().item() + pseudo_log_det(kept, true_rank(rows))


@each(DEFICIENT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_pseudo_log_determinant(case, dtype):
    module, inputs, targets = case.build(dtype)
    rows = jacobian(module, inputs, targets)
    with pytest.warns(UserWarning, match=r"(?i)rank"):
        got = fisher_log_det(module, inputs, targets, rank_policy="pseudo")
    precision = 1e-9 if dtype == torch.float64 else 1e-5
    assert int(got.rank) == true_rank(rows)
    assert got.log_det.item() == pytest.approx(documented_pseudo_log_det(rows), rel=precision)
    assert got.log_det.item() == pytest.approx((got.magnitude + got.direction).item(), rel=1e-12)
    with pytest.warns(UserWarning, match=r"(?i)rank"):
        value = log_det(gram(rows), rank_policy="pseudo")
    assert value.item() == pytest.approx(documented_pseudo_log_det(rows), rel=1e-9)


def test_pseudo_does_not_warn_at_full_rank():
    module, inputs, targets = by_name("mlp").build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = fisher_log_det(module, inputs, targets, rank_policy="pseudo")
    assert got.log_det.item() == fisher_log_det(module, inputs, targets).log_det.item()


def test_uniform_soft_labels_at_uniform_output_have_no_gradient():
    module, inputs, _ = by_name("linear").build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    targets = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    targets[1:] = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    with pytest.raises(ValueError, match=r"(?i)zero|rank"):
        fisher_log_det(module, inputs, targets)


def test_all_gradients_zero_is_never_a_number_in_silence():
    with pytest.raises(ValueError, match="rank"):
        log_det(torch.zeros(3, 3, dtype=torch.float64))


def test_tol_decides_what_counts_as_zero():
    nearly = torch.tensor([[1.0, 1 - 1e-6], [1 - 1e-6, 1.0]], dtype=torch.float64)
    assert log_det(nearly).item() == pytest.approx(math.log(1 - (1 - 1e-6) ** 2), rel=1e-9)
    with pytest.raises(ValueError, match="rank"):
        log_det(nearly, tol=1e-5)


@pytest.mark.parametrize("bad", [torch.ones(2, 3), torch.ones(4), torch.full((2, 2), math.nan)])
def test_bad_gram_is_refused(bad):
    with pytest.raises(ValueError, match="Expected argument `gram`"):
        log_det(bad)


def test_bad_rank_policy_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"rank_policy.*error.*pseudo.*ignore"):
        log_det(torch.eye(2), rank_policy="ignore")


@each(REFUSED)
def test_interacting_samples_are_refused(case):
    module, inputs, targets = case.build()
    with pytest.raises(ValueError, match=r"(?i)sample|batch"):
        fisher_log_det(module, inputs, targets, rank_policy="pseudo")

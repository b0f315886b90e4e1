"""log_spectrum against eigenvalues in 60 digits."""

from __future__ import annotations

import mpmath
import pytest
import torch

from lightning_fisher.functional import fisher_log_det, log_spectrum
from tests.reference.cases import by_name


def cosines(n, width):
    rows = torch.randn(n, width, dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows @ rows.T


def exact(cosine, log_norms):
    """Logarithms of the eigenvalues, descending, in 60 digits."""
    with mpmath.workdps(60):
        n = len(cosine)
        norms = [mpmath.exp(mpmath.mpf(float(v))) for v in log_norms]
        entries = [[mpmath.mpf(float(cosine[i, j])) * norms[i] * norms[j] for j in range(n)] for i in range(n)]
        xi = mpmath.matrix(entries)
        return sorted((float(mpmath.log(v)) for v in mpmath.eigsy(xi, eigvals_only=True)), reverse=True)


@pytest.mark.parametrize("decades", [0, 9, 30])
def test_every_eigenvalue_is_exact_in_its_own_digits(decades):
    cosine = cosines(16, 24)
    log_norms = torch.linspace(0, -decades, 16).double()[torch.randperm(16)] * 2.302585 / 2
    assert log_spectrum(cosine, log_norms).tolist() == pytest.approx(exact(cosine, log_norms), abs=1e-11)


def test_the_logarithms_add_up_to_the_log_determinant():
    module, inputs, targets = by_name("mlp").build()
    result = fisher_log_det(module, inputs, targets)
    logs = log_spectrum(result.gram, result.log_norms)
    assert float(logs.sum()) == pytest.approx(float(result.log_det), rel=1e-12)
    assert torch.equal(logs, logs.sort(descending=True).values)


def test_norms_below_the_range_of_float64():
    logs = log_spectrum(torch.eye(3), torch.tensor([-500.0, -600.0, -700.0]))
    assert logs.tolist() == pytest.approx([-1000.0, -1200.0, -1400.0])


def test_zero_gradients_and_duplicates_are_minus_infinity():
    cosine = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    logs = log_spectrum(cosine, torch.tensor([0.0, 0.0, -1.0, -torch.inf]))
    assert logs[:2].tolist() == pytest.approx([torch.tensor(2.0).log().item(), -2.0])
    assert torch.isneginf(logs[2:]).all()
    assert torch.isneginf(log_spectrum(torch.zeros(2, 2), torch.full((2,), -torch.inf))).all()


def test_the_rank_is_taken_from_the_caller():
    cosine = torch.tensor([[1.0, 1.0 - 1e-9], [1.0 - 1e-9, 1.0]], dtype=torch.float64)
    norms = torch.zeros(2, dtype=torch.float64)
    assert torch.isneginf(log_spectrum(cosine, norms, rank=1)).tolist() == [False, True]
    assert torch.isneginf(log_spectrum(cosine, norms)).tolist() == [False, False]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"`cosine` and `log_norms`"):
        log_spectrum(torch.eye(3), torch.zeros(2))

from __future__ import annotations

import pytest
import torch

from lightning_fisher.functional.curvature.lanczos import largest_magnitude_eigenvalue


def symmetric(eigenvalues):
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return basis @ torch.diag(eigenvalues) @ basis.T


def largest(matrix, **options):
    start = torch.randn(1, len(matrix), dtype=torch.float64)
    result = largest_magnitude_eigenvalue(lambda v: v @ matrix.T, start, **{"tol": 1e-8, "max_iter": 300, **options})
    return result._replace(value=result.value[0], residual=result.residual[0], converged=bool(result.converged))


@pytest.mark.parametrize(
    "eigenvalues",
    [
        torch.logspace(-12, 3, 200),
        torch.cat([-torch.logspace(-6, 2, 100), torch.logspace(-6, 1, 100)]),
        torch.cat([torch.linspace(0, 1, 199), torch.tensor([-1.001])]),
        torch.ones(50),
        torch.tensor([3.0, 3.0, 3.0, -1.0, 0.0]),
    ],
    ids=["fifteen decades", "negative end", "crowded and opposite", "multiple of one", "degenerate"],
)
def test_finds_the_extreme_eigenvalue_with_its_sign(eigenvalues):
    result = largest(symmetric(eigenvalues))
    expected = eigenvalues.double()[eigenvalues.abs().argmax()]
    assert result.converged
    torch.testing.assert_close(result.value, expected, rtol=1e-7, atol=0)


def test_copies_of_converged_eigenvalues_do_no_harm():
    """Far more steps than it needs: orthogonality is lost, the extreme value is not."""
    with_copies = largest(symmetric(torch.linspace(0, 1, 60)), tol=1e-300, max_iter=300)
    assert with_copies.iterations > 60
    torch.testing.assert_close(with_copies.value, torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0)


def test_operators_of_a_batch_do_not_disturb_each_other():
    """One converges at once, one is zero, one breaks down after two steps, one takes long."""
    spectra = [
        torch.full((40,), 2.0),
        torch.zeros(40),
        torch.cat([torch.full((20,), 3.0), torch.full((20,), -1.0)]),
        torch.linspace(-5, 5, 40),
    ]
    matrices = torch.stack([symmetric(spectrum) for spectrum in spectra])
    start = torch.randn(4, 40, dtype=torch.float64)
    result = largest_magnitude_eigenvalue(
        lambda v: (matrices @ v.unsqueeze(2)).squeeze(2), start, tol=1e-9, max_iter=300
    )
    assert result.converged.all()
    torch.testing.assert_close(result.value.abs(), torch.tensor([2.0, 0.0, 3.0, 5.0], dtype=torch.float64))


def test_refuses_an_operator_that_is_not_symmetric():
    matrix = symmetric(torch.linspace(-1, 1, 50))
    matrix[3, 4] += 0.5
    with pytest.raises(ValueError, match=r"Expected a symmetric operator, but .* differ by .* relative"):
        largest(matrix)


def test_zero_operator_converges_to_zero():
    result = largest(torch.zeros(4, 4, dtype=torch.float64))
    assert (float(result.value), result.iterations, result.converged) == (0.0, 1, True)


def test_one_dimension():
    result = largest(torch.tensor([[-2.0]], dtype=torch.float64))
    assert (float(result.value), result.iterations, result.converged) == (-2.0, 1, True)


def test_stops_at_max_iter():
    result = largest(symmetric(torch.linspace(0, 1, 100)), max_iter=5)
    assert (result.iterations, result.converged) == (5, False)

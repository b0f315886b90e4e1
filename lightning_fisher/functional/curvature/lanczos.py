"""The eigenvalue of largest magnitude of symmetric operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fisher.exceptions import NonFiniteError


class Eigenvalues(NamedTuple):
    """An eigenvalue of each of B operators, and how well it is known.

    Attributes:
        value: The Ritz values θ, ``[B]`` float64.
        residual: ``‖A u − θ u‖`` of their unit Ritz vectors: A has an eigenvalue within this distance of θ.
        iterations: Products made.
        converged: Whether ``residual ≤ tol · |θ|``, ``[B]``.
    """

    value: Tensor
    residual: Tensor
    iterations: int
    converged: Tensor


def largest_magnitude_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, *, tol: float, max_iter: int, rounding: float = 1e-6
) -> Eigenvalues:
    """Lanczos' three-term recurrence: one product and three vectors an operator, however many iterations.

    It is power iteration that keeps the best of all its iterates' combinations. The basis is not
    re-orthogonalized: rounding then adds copies of eigenvalues that have converged, which leaves the extreme ones
    as they are (Paige 1980), and memory does not grow with the iterations.

    Args:
        product: ``V ↦ A V``, row by row, on ``[B, D]`` float64; every A symmetric.
        start: Random vectors ``[B, D]``, float64.
        tol: Relative residual at which an operator's eigenvalue is final.
        max_iter: Products at most.
        rounding: Relative asymmetry that the product's rounding explains.

    Returns:
        The eigenvalues with their signs, their residuals, the iterations, and which converged.

    Raises:
        ValueError: If an operator turns out not to be symmetric.
        NonFiniteError: If a product is infinite or nan.
    """
    current = start / _norm(start).unsqueeze(1)
    previous = torch.zeros_like(current)
    beta = norm = value = residual = torch.zeros_like(current[:, 0])
    converged = torch.zeros_like(beta, dtype=torch.bool)
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    while True:
        image = product(current)
        significant = beta > 0.1 * norm  # a small β is rounding itself
        mismatch = (previous * image).sum(1) - beta
        norm = _norm(image)
        if not bool(torch.isfinite(norm).all()):
            raise NonFiniteError("derivatives")
        require_symmetric(mismatch[significant], norm[significant], rounding)
        image = image - beta.unsqueeze(1) * previous
        diagonal.append((image * current).sum(1))
        image = image - diagonal[-1].unsqueeze(1) * current
        beta = _norm(image)
        theta, last = _largest(diagonal, off_diagonal)
        value = torch.where(converged, value, theta)
        residual = torch.where(converged, residual, beta * last)
        converged = residual <= tol * value.abs()
        if bool(converged.all()) or len(diagonal) >= max_iter:
            return Eigenvalues(value, residual, len(diagonal), converged)
        off_diagonal.append(beta)
        previous, current = current, image / torch.where(beta > 0, beta, 1.0).unsqueeze(1)


def require_symmetric(difference: Tensor, scale: Tensor, rounding: float) -> None:
    """Refuse ``⟨u, A v⟩ − ⟨A u, v⟩`` that rounding does not explain.

    Raises:
        ValueError: If ``|difference| > rounding · scale`` anywhere.
    """
    wrong = difference.abs() > rounding * scale
    if bool(wrong.any()):
        raise ValueError(
            "Expected a symmetric operator, but ⟨u, A v⟩ and ⟨A u, v⟩ differ by "
            f"{float((difference.abs() / scale)[wrong].max()):.1e} relative. If it is a Hessian, the second derivative "
            "of one of the module's functions is wrong, or its forward pass is not a fixed function of the weights."
        )


def _norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1)


def _largest(diagonal: list[Tensor], off_diagonal: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalue of largest magnitude of the tridiagonal matrices, and its eigenvector's last entry's magnitude."""
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if off_diagonal:
        off = torch.stack(off_diagonal, 1)
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(matrix.cpu())  # small: faster than on a GPU
    best = values.abs().argmax(1, keepdim=True)
    last = vectors[:, -1].abs().gather(1, best)
    return values.gather(1, best).squeeze(1).to(matrix.device), last.squeeze(1).to(matrix.device)

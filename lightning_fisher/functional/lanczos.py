"""The eigenvalue of largest magnitude of a symmetric operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Eigenvalue(NamedTuple):
    """An eigenvalue and how well it is known.

    Attributes:
        value: The Ritz value θ, float64 scalar.
        residual: ``‖A u − θ u‖`` of its unit Ritz vector: the operator has an eigenvalue within this distance.
        iterations: Products made.
        converged: Whether ``residual ≤ tol · |θ|``.
    """

    value: Tensor
    residual: Tensor
    iterations: int
    converged: bool


def largest_magnitude_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, *, tol: float, max_iter: int, rounding: float = 1e-6
) -> Eigenvalue:
    """Lanczos' three-term recurrence: one product and three vectors, however many iterations.

    The basis is not re-orthogonalised: rounding then adds copies of eigenvalues that have converged, which
    leaves the extreme ones as they are (Paige 1980), and memory does not grow with the iterations.

    Args:
        product: ``v ↦ A v`` on ``[D]`` float64 vectors, A symmetric.
        start: A random vector ``[D]``, float64, not orthogonal to the eigenvector sought.
        tol: Relative residual at which to stop.
        max_iter: Products at most.
        rounding: Relative asymmetry that the product's rounding explains.

    Returns:
        The eigenvalue with its sign, its residual, the iterations, and whether it converged.

    Raises:
        ValueError: If the operator turns out not to be symmetric.
    """
    current = start / torch.linalg.vector_norm(start)
    previous = torch.zeros_like(current)
    beta = norm = 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        image = product(current)
        if diagonal and beta > 0.1 * norm:  # where β is small, it is rounding itself
            require_symmetric(previous @ image - beta, torch.linalg.vector_norm(image), rounding)
        norm = float(torch.linalg.vector_norm(image))
        image = image - beta * previous
        alpha = float(image @ current)
        image = image - alpha * current
        beta = float(torch.linalg.vector_norm(image))
        diagonal.append(alpha)
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, off_diagonal))
        best = int(values.abs().argmax())
        residual = beta * vectors[-1, best].abs()
        converged = bool(residual <= tol * values[best].abs())
        if converged or len(diagonal) >= max_iter:
            return Eigenvalue(values[best], residual, len(diagonal), converged)
        off_diagonal.append(beta)
        previous, current = current, image / beta


def require_symmetric(difference: Tensor, scale: Tensor, rounding: float) -> None:
    """Refuse ``⟨u, A v⟩ − ⟨A u, v⟩`` that rounding does not explain.

    Raises:
        ValueError: If ``|difference| > rounding · scale``.
    """
    if bool(difference.abs() > rounding * scale):
        raise ValueError(
            "Expected a symmetric operator, but ⟨u, A v⟩ and ⟨A u, v⟩ differ by "
            f"{float(difference.abs() / scale):.1e} relative. If it is a Hessian, the second derivative of one of the "
            "module's functions is wrong, or its forward pass is not a fixed function of the weights."
        )


def _tridiagonal(diagonal: list[float], off_diagonal: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        off = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    return matrix

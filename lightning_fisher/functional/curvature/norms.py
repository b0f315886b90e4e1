"""Frobenius norm and spectral radius of the loss curvature, from the Gram matrix and from the true Hessian.

At an exact minimum of the cross-entropy the Hessian is the Fisher information ``I_S`` (Eq. 1), whose non-zero
eigenvalues are those of ``ξ/N``: one Gram matrix gives both norms. Away from it they differ, and the
Hessian's own norms are estimated by Hessian-vector products.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer, require_positive
from lightning_fisher.exceptions import NonFiniteError
from lightning_fisher.functional.curvature.hessian import mean_loss_hessian
from lightning_fisher.functional.curvature.lanczos import largest_magnitude_eigenvalue, require_symmetric
from lightning_fisher.functional.losses.loss import LossFn


class HessianFrobeniusNorm(NamedTuple):
    """An estimate of ``‖H‖_F²``.

    Attributes:
        value: The estimate, float64 scalar.
        standard_error: Its standard error; 0 where it is exact, ``nan`` for a single probe.
    """

    value: Tensor
    standard_error: Tensor


class HessianSpectralRadius(NamedTuple):
    """``ρ(H)`` and how well it is known.

    Attributes:
        value: ``ρ = |λ|``, float64 scalar.
        eigenvalue: λ, the eigenvalue of largest magnitude, with its sign.
        residual: ``‖H u − λ u‖`` for the unit vector u found: H has an eigenvalue within this distance of λ.
        iterations: Hessian-vector products made.
        converged: Whether ``residual ≤ tol · |λ|``.
    """

    value: Tensor
    eigenvalue: Tensor
    residual: Tensor
    iterations: int
    converged: bool


def frobenius_norm(gram: Tensor) -> Tensor:
    """Squared Frobenius norm of the Fisher information of a subset, ``‖I_S‖_F² = ‖ξ‖_F² / N′²`` (Sec. 7.1).

    Args:
        gram: ξ ``[N′, N′]``, as :func:`~lightning_fisher.functional.gram_matrix` returns it.

    Returns:
        A float64 scalar, the *squared* norm, as the paper compares it.

    Raises:
        ValueError: If ``gram`` is not a finite square matrix.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.curvature.norms import frobenius_norm
        >>> frobenius_norm(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        tensor(2.5000, dtype=torch.float64)
    """
    return _square(gram).square().sum() / len(gram) ** 2


def spectral_radius(gram: Tensor) -> Tensor:
    """Spectral radius of the Fisher information of a subset, ``ρ(I_S) = λ_max(ξ) / N′`` (Sec. 7.1).

    Args:
        gram: ξ ``[N′, N′]``, as :func:`~lightning_fisher.functional.gram_matrix` returns it.

    Returns:
        A float64 scalar. Costs O(N′³).

    Raises:
        ValueError: If ``gram`` is not a finite square matrix.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.curvature.norms import spectral_radius
        >>> spectral_radius(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        tensor(1.5000, dtype=torch.float64)
    """
    return torch.linalg.eigvalsh(_square(gram))[-1] / len(gram)


def hessian_frobenius_norm(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    num_probes: int = 20,
    seed: int = 0,
    loss_fn: LossFn | None = None,
    chunk_size: int | None = None,
) -> HessianFrobeniusNorm:
    """Squared Frobenius norm of the Hessian, ``‖∇²_w L(S, w)‖_F² = E‖H v‖²`` (Hutchinson).

    ``v`` has independent entries ±1. The estimate is unbiased, with variance at most ``2‖H²‖_F²`` over the
    number of probes; with at least W probes the unit vectors are taken instead, and the result is exact. In
    evaluation mode; the module is left unchanged.

    Args:
        module: The network, float32 or float64.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        num_probes: Hessian-vector products, each two backward passes over all samples.
        seed: Of the probes; the global random state is not touched.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        chunk_size: Samples whose graph is held at a time; ``None``: all. Memory otherwise is a few W float64.

    Returns:
        The *squared* norm and its standard error.

    Raises:
        ValueError: If ``num_probes`` or ``chunk_size`` is not positive, there is nothing to differentiate, a
            batch-norm uses batch statistics, or the products are those of no symmetric matrix.
        NonFiniteError: A `ValueError`, if a second derivative is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.curvature.norms import hessian_frobenius_norm
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> squared_error = lambda outputs, targets: (outputs - targets).square().mean()
        >>> hessian_frobenius_norm(net, torch.ones(4, 1), torch.zeros(4, 1), loss_fn=squared_error).value
        tensor(4., dtype=torch.float64)
    """
    require_integer("num_probes", num_probes, 1)
    generator = torch.Generator().manual_seed(seed)
    with mean_loss_hessian(module, inputs, targets, loss_fn=loss_fn, chunk_size=chunk_size) as product:
        if num_probes >= product.size:
            hessian = torch.stack([product(column) for column in torch.eye(product.size)])
            _require_finite(hessian)
            require_symmetric((hessian - hessian.T).norm(), hessian.norm(), product.rounding)
            return HessianFrobeniusNorm(hessian.square().sum(), torch.zeros_like(hessian[0, 0]))
        values = torch.zeros(num_probes, dtype=torch.float64, device=product.device)
        first, first_image = torch.empty(0), torch.empty(0)
        for i in range(num_probes):
            probe = torch.randint(0, 2, (product.size,), generator=generator).to(product.device) * 2.0 - 1.0
            image = product(probe)
            values[i] = image.square().sum()
            if i == 0:
                first, first_image = probe.double(), image
            elif i == 1:
                difference = first @ image - probe.double() @ first_image
                require_symmetric(difference, image.norm(), product.rounding)
    _require_finite(values)
    error = values.std() / math.sqrt(num_probes) if num_probes > 1 else torch.full_like(values[0], math.nan)
    return HessianFrobeniusNorm(values.mean(), error)


def hessian_spectral_radius(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    loss_fn: LossFn | None = None,
    chunk_size: int | None = None,
) -> HessianSpectralRadius:
    """Spectral radius of the Hessian, ``ρ(∇²_w L(S, w)) = |λ|``, by Lanczos' method (Sec. 7.1).

    Both ends of the spectrum are seen, so a Hessian with ``λ_min ≈ −λ_max``, on which power iteration stalls,
    is no exception. In evaluation mode; the module is left unchanged.

    Args:
        module: The network, float32 or float64.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        tol: Stop when ``‖H u − λ u‖ ≤ tol · |λ|``; λ itself is then usually known to about ``tol²``.
        max_iter: Hessian-vector products at most, each two backward passes over all samples.
        seed: Of the start vector; the global random state is not touched.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        chunk_size: Samples whose graph is held at a time; ``None``: all. Memory otherwise is a few W float64.

    Returns:
        The spectral radius, the eigenvalue with its sign, the residual, the products made and whether it
        converged. A warning is given where it did not.

    Raises:
        ValueError: If ``tol``, ``max_iter`` or ``chunk_size`` is not positive, there is nothing to
            differentiate, a batch-norm uses batch statistics, or the products are those of no symmetric matrix.
        NonFiniteError: A `ValueError`, if a second derivative is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.curvature.norms import hessian_spectral_radius
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> squared_error = lambda outputs, targets: (outputs - targets).square().mean()
        >>> hessian_spectral_radius(net, torch.ones(4, 1), torch.zeros(4, 1), loss_fn=squared_error).value
        tensor(2., dtype=torch.float64)
    """
    require_positive("tol", tol)
    require_integer("max_iter", max_iter, 1)
    generator = torch.Generator().manual_seed(seed)
    with mean_loss_hessian(module, inputs, targets, loss_fn=loss_fn, chunk_size=chunk_size) as product:
        start = torch.randn(1, product.size, generator=generator, dtype=torch.float64).to(product.device)
        found = largest_magnitude_eigenvalue(
            lambda vectors: product(vectors[0]).unsqueeze(0),
            start,
            tol=tol,
            max_iter=max_iter,
            rounding=product.rounding,
        )
    eigenvalue = found.value[0]
    result = HessianSpectralRadius(
        eigenvalue.abs(), eigenvalue, found.residual[0], found.iterations, bool(found.converged)
    )
    if not result.converged:
        warnings.warn(
            f"The spectral radius did not converge in {result.iterations} iterations: {result.value:.6g} with "
            f"residual {result.residual:.2g}, tolerance {tol:.1g} relative; raise `max_iter`.",
            stacklevel=2,
        )
    return result


def _require_finite(products: Tensor) -> None:
    if not bool(torch.isfinite(products).all()):
        raise NonFiniteError("second derivatives")


def _square(gram: Tensor) -> Tensor:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
        raise ValueError(f"Expected argument `gram` to be a square matrix [N, N], but got shape {tuple(gram.shape)}.")
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("Expected argument `gram` to be finite, but it has infinite or undefined entries.")
    return gram.double()

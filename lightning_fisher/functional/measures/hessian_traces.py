"""Traces of the Hessian of the loss, of its Gauss–Newton part, and of the Hessian with respect to relative changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer
from lightning_fisher.exceptions import NonFiniteError
from lightning_fisher.functional.curvature.hessian import mean_loss_hessian
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.samples import chunks, num_samples, take
from lightning_fisher.functional.fisher.gradient_norms import log_gradient_norms
from lightning_fisher.functional.losses.loss import LossFn


class TraceEstimate(NamedTuple):
    """An estimate of a trace.

    Attributes:
        value: The estimate, float64 scalar.
        standard_error: Its standard error; 0 where it is exact.
    """

    value: Tensor
    standard_error: Tensor


def hessian_trace(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    num_products: int = 60,
    seed: int = 0,
    loss_fn: LossFn | None = None,
    chunk_size: int | None = None,
) -> TraceEstimate:
    """Trace of the Hessian of the mean loss, ``tr ∇²_w L(S, w)``, by Hutch++ (Meyer et al. 2021).

    A third of the products finds directions of large curvature, a third takes the trace there exactly, and the rest
    estimates what remains with random signs. With at least W products the unit vectors are taken, and it is exact.
    Larger is worse. Not unchanged by any rescaling: the classical baseline. For a piecewise linear network
    `gauss_newton_trace` is the same number, exact and mostly cheaper.

    Args:
        module: The network, float32 or float64; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        num_products: Hessian-vector products, at least 6, each two backward passes over all samples.
        seed: Of the random vectors; the global random state is not touched.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        chunk_size: Samples whose graph is held at a time; ``None``: all. Memory otherwise is about ``num_products · W``
            float64.

    Returns:
        The trace and its standard error.

    Raises:
        ValueError: If ``num_products`` or ``chunk_size`` is too small, there is nothing to differentiate, or a
            batch-norm uses batch statistics.
        NonFiniteError: A `ValueError`, if a second derivative is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import hessian_trace
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> squared_error = lambda outputs, targets: (outputs - targets).square().mean()
        >>> hessian_trace(net, torch.ones(4, 2), torch.zeros(4, 1), loss_fn=squared_error).value
        tensor(4., dtype=torch.float64)
    """
    require_integer("num_products", num_products, 6)
    with mean_loss_hessian(module, inputs, targets, loss_fn=loss_fn, chunk_size=chunk_size) as product:
        return _trace(product, product.size, num_products, seed, product.device)


def weighted_hessian_trace(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    num_products: int = 60,
    seed: int = 0,
    loss_fn: LossFn | None = None,
    chunk_size: int | None = None,
) -> TraceEstimate:
    """Trace of the Hessian with respect to relative changes of every weight, ``Σ_i w_i² H_ii``.

    The limit of ``2/ρ²`` times the adaptive average sharpness as ρ → 0 (Andriushchenko et al. 2023), without
    sampling noise of its size. By Hutch++ on ``diag(w) H diag(w)``, exact with at least W products. Larger is worse.
    Unchanged by every rescaling that leaves the function unchanged (the estimate too, for equal seeds); not by the
    logits' scale.

    Args:
        module: See `hessian_trace`.
        inputs: See `hessian_trace`.
        targets: See `hessian_trace`.
        num_products: See `hessian_trace`.
        seed: See `hessian_trace`.
        loss_fn: See `hessian_trace`.
        chunk_size: See `hessian_trace`.

    Returns:
        The trace and its standard error.

    Raises:
        ValueError: As `hessian_trace`.
        NonFiniteError: As `hessian_trace`.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import weighted_hessian_trace
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 3.0]]))
        >>> squared_error = lambda outputs, targets: (outputs - targets).square().mean()
        >>> result = weighted_hessian_trace(net, torch.ones(4, 2), torch.zeros(4, 1), loss_fn=squared_error)
        >>> result.value  # 2 (1² + 3²)
        tensor(20., dtype=torch.float64)
    """
    require_integer("num_products", num_products, 6)
    with mean_loss_hessian(module, inputs, targets, loss_fn=loss_fn, chunk_size=chunk_size) as product:
        pieces = [parameter.detach().flatten() for parameter in module.parameters() if parameter.requires_grad]
        weights = torch.cat([piece.to(product.device, torch.float64) for piece in pieces])
        return _trace(lambda v: weights * product(weights * v), product.size, num_products, seed, product.device)


def gauss_newton_trace(module: nn.Module, inputs: Any, *, chunk_size: int = 50) -> Tensor:
    """Trace of the Gauss–Newton matrix of the cross-entropy, which is the true Fisher information.

    ``tr G = 1/N Σ_j Σ_k ‖J_jᵀ v_jk‖²``, ``v_jk = √p_k (e_k − p)``, J_j the Jacobian of the logits of sample j: exact,
    no sampling. Labels don't enter. For a network that is linear in the weights of each layer and piecewise linear in
    between (ReLU, batch-norm in evaluation mode, no layer used twice) it equals ``tr ∇²_w L``, because no weight has a
    second derivative of the logits. Larger is worse; not unchanged by any rescaling.

    Args:
        module: The network, returning logits ``[N, K]``; see `gram_matrix`.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        chunk_size: Samples at a time.

    Returns:
        A float64 scalar. Costs K times what `log_gradient_norms` costs, and a forward pass.

    Raises:
        ValueError: If the outputs are no logits ``[N, K]``, and as `gram_matrix`.
        NonFiniteError: A `ValueError`, if outputs or gradients are infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import gauss_newton_trace
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.zero_()
        >>> round(float(gauss_newton_trace(net, torch.ones(1, 2))), 6)  # ‖x‖² Σ p (1 − p)
        1.0
    """
    require_integer("chunk_size", chunk_size, 1)
    with differentiable_evaluation(module), torch.no_grad():
        ready = differentiable(inputs, module)
        parts = [evaluate(module, take(ready, part)) for part in chunks(num_samples(inputs), chunk_size)]
    if not all(isinstance(part, Tensor) and part.ndim == 2 for part in parts):
        raise ValueError("Expected the module to return logits of shape [N, K].")
    factors = _softmax_factors(torch.cat(parts).double())
    total = torch.zeros((), dtype=torch.float64)
    for k in range(factors.shape[1]):
        logs = log_gradient_norms(module, inputs, factors[:, k], loss_fn=_inner_product, chunk_size=chunk_size)
        total += (2 * logs).exp().sum().cpu()
    return total / len(factors)


def _inner_product(outputs: Tensor, directions: Tensor) -> Tensor:
    return (outputs * directions).sum(1)


def _softmax_factors(logits: Tensor) -> Tensor:
    """``v_k = √p_k (e_k − p)``, ``[N, k, K]``: ``Σ_k v_k v_kᵀ = diag(p) − p pᵀ``.

    Where the network is sure of y, ``1 − p_y`` cancels, but v_y is of second order there.
    """
    log_p = torch.log_softmax(logits, 1)
    eye = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return (log_p / 2).exp().unsqueeze(2) * (eye - log_p.exp().unsqueeze(1))


def _trace(
    product: Callable[[Tensor], Tensor], size: int, num_products: int, seed: int, device: torch.device
) -> TraceEstimate:
    def columns(vectors: Tensor) -> Tensor:
        images = torch.stack([product(vector) for vector in vectors.T], 1)
        if not bool(torch.isfinite(images).all()):
            raise NonFiniteError("second derivatives")
        return images

    zero = torch.zeros((), dtype=torch.float64, device=device)
    if num_products >= size:
        return TraceEstimate(sum((product(row)[i] for i, row in enumerate(_unit_vectors(size, device))), zero), zero)
    generator = torch.Generator().manual_seed(seed)

    def signs(count: int) -> Tensor:
        return torch.randint(0, 2, (size, count), generator=generator).to(device) * 2.0 - 1.0

    third = num_products // 3
    basis = torch.linalg.qr(columns(signs(third).double())).Q
    largest = (basis * columns(basis)).sum()
    probes = signs(num_products - 2 * third).double()
    rest = probes - basis @ (basis.T @ probes)
    values = (rest * columns(rest)).sum(0)
    return TraceEstimate(largest + values.mean(), values.std() / math.sqrt(len(values)))


def _unit_vectors(size: int, device: torch.device) -> Any:
    for i in range(size):
        vector = torch.zeros(size, dtype=torch.float64, device=device)
        vector[i] = 1.0
        yield vector

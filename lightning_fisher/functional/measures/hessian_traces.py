"""Traces of the Hessian of the loss, of its Gauss–Newton part, and of the Hessian with respect to relative changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice, require_integer
from lightning_fisher.exceptions import NonFiniteError, UndefinedMeasureError
from lightning_fisher.functional.curvature.hessian import mean_loss_hessian
from lightning_fisher.functional.curvature.linearity import linear_in_each_parameter
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.samples import chunks, num_samples, take
from lightning_fisher.functional.fisher.gradient_norms import log_gradient_norms
from lightning_fisher.functional.gram.rules.parameter_scale import Scale
from lightning_fisher.functional.losses.loss import LossFn

Method = Literal["auto", "exact", "hutch++"]


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
    method: Method = "auto",
    loss_fn: LossFn | None = None,
    chunk_size: int | None = None,
) -> TraceEstimate:
    """Trace of the Hessian of the mean loss, ``tr ∇²_w L(S, w)``. Larger is worse.

    Not unchanged by any rescaling: the classical baseline. Two methods:

    - ``"exact"``: `gauss_newton_trace`, the same number where the logits are piecewise linear in each parameter (ReLU
      networks, batch-norm in evaluation mode, no weight used twice along a path) and the loss is the cross-entropy.
      Whether they are is read off autograd's graph.
    - ``"hutch++"`` (Meyer et al. 2021): a third of the products finds directions of large curvature, a third takes
      the trace there exactly, and the rest estimates what remains with random signs. With at least W products the unit
      vectors are taken, and it is exact for any network.

    Args:
        module: The network, float32 or float64; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        num_products: Hessian-vector products of ``"hutch++"``, at least 6, each two backward passes over all samples.
        seed: Of its random vectors; the global random state is not touched.
        method: ``"auto"``: exact where that holds, otherwise ``"hutch++"``.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        chunk_size: Samples whose graph is held at a time; ``None``: all (50 where it is exact). Memory of
            ``"hutch++"`` otherwise is about ``num_products · W`` float64.

    Returns:
        The trace and its standard error. Costs K forward and backward passes where it is exact, K the number of
        classes, and ``2 num_products`` backward passes otherwise.

    Raises:
        ValueError: If ``num_products`` or ``chunk_size`` is too small, ``method`` is ``"exact"`` and that doesn't hold,
            there is nothing to differentiate, or a batch-norm uses batch statistics.
        NonFiniteError: A `ValueError`, if a second derivative is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import hessian_trace
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> squared_error = lambda outputs, targets: (outputs - targets).square().mean()
        >>> hessian_trace(net, torch.ones(4, 2), torch.zeros(4, 1), loss_fn=squared_error).value
        tensor(4., dtype=torch.float64)
    """
    traces = HessianTraces(module, inputs, targets, loss_fn=loss_fn, chunk_size=chunk_size)
    return traces.hessian("none", num_products=num_products, seed=seed, method=method)


def weighted_hessian_trace(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    num_products: int = 60,
    seed: int = 0,
    method: Method = "auto",
    loss_fn: LossFn | None = None,
    chunk_size: int | None = None,
) -> TraceEstimate:
    """Trace of the Hessian with respect to relative changes of every weight, ``Σ_i w_i² H_ii``. Larger is worse.

    The limit of ``2/ρ²`` times the adaptive average sharpness as ρ → 0 (Andriushchenko et al. 2023), without sampling
    noise of its size. By the methods of `hessian_trace`: exactly, as ``gauss_newton_trace(scale="element")``, or by
    Hutch++ on ``diag(w) H diag(w)``. Unchanged by every rescaling that leaves the function unchanged (the estimate too,
    for equal seeds); not by the logits' scale.

    Args:
        module: See `hessian_trace`.
        inputs: See `hessian_trace`.
        targets: See `hessian_trace`.
        num_products: See `hessian_trace`.
        seed: See `hessian_trace`.
        method: See `hessian_trace`.
        loss_fn: See `hessian_trace`.
        chunk_size: See `hessian_trace`.

    Returns:
        The trace and its standard error; see `hessian_trace`.

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
    traces = HessianTraces(module, inputs, targets, loss_fn=loss_fn, chunk_size=chunk_size)
    return traces.hessian("element", num_products=num_products, seed=seed, method=method)


def gauss_newton_trace(module: nn.Module, inputs: Any, *, scale: Scale = "none", chunk_size: int = 50) -> Tensor:
    """Trace of the Gauss–Newton matrix of the cross-entropy, which is the true Fisher information.

    ``tr G = 1/N Σ_j Σ_k ‖J_jᵀ v_jk‖²``, ``v_jk = √p_k (e_k − p)``, J_j the Jacobian of the logits of sample j: exact,
    no sampling. Labels don't enter. For a network that is linear in the weights of each layer and piecewise linear in
    between (ReLU, batch-norm in evaluation mode, no layer used twice) it equals ``tr ∇²_w L``, because no weight has a
    second derivative of the logits. Larger is worse; not unchanged by any rescaling, with ``scale="none"``.

    Args:
        module: The network, returning logits ``[N, K]``; see `gram_matrix`.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        scale: With respect to relative changes of layers, filters or weights: gradients are multiplied by the norm of
            what their weight belongs to; see `gram_matrix`. With ``"element"``: ``Σ_i w_i² G_ii``.
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
        logs = log_gradient_norms(
            module, inputs, factors[:, k], loss_fn=_inner_product, chunk_size=chunk_size, scale=scale
        )
        total += (2 * logs).exp().sum().cpu()
    return total / len(factors)


class HessianTraces:
    """The traces of one network on the same samples: what they share is computed once.

    Args:
        module: See `hessian_trace`.
        inputs: See `hessian_trace`.
        targets: See `hessian_trace`.
        loss_fn: See `hessian_trace`.
        chunk_size: See `hessian_trace`.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Any,
        targets: Any,
        *,
        loss_fn: LossFn | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self._module, self._inputs, self._targets = module, inputs, targets
        self._loss_fn, self._chunk_size = loss_fn, chunk_size
        self._found: dict[Scale, Tensor] = {}

    def gauss_newton(self, scale: Scale) -> Tensor:
        """`gauss_newton_trace`."""
        if scale not in self._found:
            size = {} if self._chunk_size is None else {"chunk_size": self._chunk_size}
            self._found[scale] = gauss_newton_trace(self._module, self._inputs, scale=scale, **size)
        return self._found[scale]

    def hessian(self, scale: Scale, *, num_products: int, seed: int, method: Method) -> TraceEstimate:
        """`hessian_trace` with the scale ``"none"``, `weighted_hessian_trace` with ``"element"``."""
        require_integer("num_products", num_products, 6)
        require_choice("method", method, get_args(Method))
        if method == "exact" and self._not_exact:
            raise UndefinedMeasureError("exact trace of the Hessian", self._not_exact)
        if method != "hutch++" and not self._not_exact:
            try:
                value = self.gauss_newton(scale)
                return TraceEstimate(value, torch.zeros_like(value))
            except ValueError:  # samples that interact, say
                if method == "exact":
                    raise
        how: dict[str, Any] = {"loss_fn": self._loss_fn, "chunk_size": self._chunk_size}
        with mean_loss_hessian(self._module, self._inputs, self._targets, **how) as product:
            if scale == "none":
                return _trace(product, product.size, num_products, seed, product.device)
            pieces = [
                parameter.detach().flatten() for parameter in self._module.parameters() if parameter.requires_grad
            ]
            weights = torch.cat([piece.to(product.device, torch.float64) for piece in pieces])
            return _trace(lambda v: weights * product(weights * v), product.size, num_products, seed, product.device)

    @cached_property
    def _not_exact(self) -> str:
        """Why the trace is not that of the Gauss–Newton matrix, or nothing."""
        if self._loss_fn is not None:
            return "a loss other than the cross-entropy"
        parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        count = num_samples(self._inputs)
        with differentiable_evaluation(self._module):
            ready = differentiable(self._inputs, self._module)
            for part in chunks(count, self._chunk_size or count):
                logits = evaluate(self._module, take(ready, part))
                if not isinstance(logits, Tensor) or logits.ndim != 2:
                    return "outputs that are not logits [N, K]"
                if not linear_in_each_parameter([logits], parameters):
                    return "logits that are not piecewise linear in each parameter"
        return "" if _all_count(self._targets, logits) else "targets that don't all count alike"


def _all_count(targets: Any, logits: Tensor) -> bool:
    """Whether the Hessian of the mean cross-entropy is the mean of ``diag(p) − p pᵀ`` over all samples."""
    if not isinstance(targets, Tensor):
        return False
    if targets.is_floating_point():  # probabilities
        rounding = 1e-6 if targets.dtype in (torch.float32, torch.float64) else 0.0
        return targets.ndim == 2 and bool((targets.double().sum(1) - 1).abs().max() <= rounding)
    return targets.ndim == 1 and bool((targets >= 0).all()) and bool((targets < logits.shape[1]).all())


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

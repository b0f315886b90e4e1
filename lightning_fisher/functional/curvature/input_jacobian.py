"""Squared spectral norm of the input Jacobian of the softmax output."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_fisher.arguments import require_choice, require_integer, require_positive
from lightning_fisher.exceptions import SecondDerivativeError
from lightning_fisher.functional.curvature.lanczos import largest_magnitude_eigenvalue
from lightning_fisher.functional.curvature.softmax import SoftmaxJacobian
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.differentiable import (
    differentiable_evaluation,
    evaluate,
)
from lightning_fisher.functional.evaluation.finite import require_finite, samples_of_a_batch
from lightning_fisher.functional.evaluation.graph import refuse_single_derivatives, second_derivatives
from lightning_fisher.functional.evaluation.independence import refuse_coupled_gradients, refuse_dependent_outputs
from lightning_fisher.functional.evaluation.samples import num_samples, take
from lightning_fisher.functional.evaluation.state.modes import frozen

Method = Literal["auto", "exact", "power"]
Reduction = Literal["mean", "none"]
EXACT_UP_TO = 64  # classes, K backward passes; a step of power iteration costs about five, and it takes some ten


def robustness(
    module: nn.Module,
    inputs: Any,
    *,
    method: Method = "auto",
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    chunk_size: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean squared spectral norm of the input Jacobian, ``1/N Σ_x ‖J_x f_w(x)‖₂²`` (Sec. 7.1; Sokolić et al. 2017).

    ``f_w`` is the softmax output, ``J_x f = (diag(p) − p pᵀ) J_x z``. The Jacobian ``J_x z`` of the logits comes
    from autograd; the softmax is differentiated analytically in float64, because ``p_y (1 − p_y)`` cancels where
    the network is sure. In evaluation mode; the module is left unchanged.

    Args:
        module: The network, returning logits ``[N, K]``, K ≥ 2.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``). All
            floating-point tensors in it are differentiated, as one vector a sample.
        method: ``"exact"``: K backward passes and the largest eigenvalue of a K × K matrix a sample; holds
            ``N K D`` numbers, D the size of an input. ``"power"``: power iteration, accelerated by Lanczos'
            method, with a vector-Jacobian and a Jacobian-vector product a step, for modules that can be differentiated
            twice. ``"auto"``: exact for K ≤ 64, and for other modules.
        tol: Power iteration ends when the residual of every sample's eigenvalue is at most ``tol`` times it.
        max_iter: Steps of power iteration at most.
        seed: Of the start vectors of power iteration; the global random state is not touched.
        chunk_size: Samples at a time, two at the least; ``None``: all.
        reduction: ``"mean"``: a scalar. ``"none"``: one value a sample ``[N]``.

    Returns:
        A float64 tensor. A warning is given where power iteration did not converge.

    Raises:
        ValueError: If an option is not one of its allowed values, ``inputs`` has no floating-point tensor, the
            module does not return logits ``[N, K]``, or samples interact (batch statistics).
        NonFiniteError: A `ValueError`, if outputs or derivatives are infinite or nan; it names the samples.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.curvature.input_jacobian import robustness
        >>> net = torch.nn.Linear(1, 2, bias=False)
        >>> _ = torch.nn.init.constant_(net.weight[0], 1.0), torch.nn.init.constant_(net.weight[1], -1.0)
        >>> robustness(net, torch.zeros(3, 1))  # p = (½, ½), ∂p/∂x = (½, −½)
        tensor(0.5000, dtype=torch.float64)
    """
    _check(method, reduction, tol, max_iter, chunk_size)
    count = num_samples(inputs)
    step = max(chunk_size or count, 2)  # alone, samples don't show whether they interact
    generator = torch.Generator().manual_seed(seed)
    values = []
    with differentiable_evaluation(module), frozen(module.parameters()):
        inputs, _ = own_batch(module, inputs)
        for start in range(0, count, step):
            chunk = take(inputs, slice(start, start + step))
            variables, leaves = _variables(chunk)
            logits = _logits(evaluate(module, variables), leaves, num_samples(chunk))
            with samples_of_a_batch(range(start, start + len(logits))):
                require_finite(logits, "outputs of the module")
            refuse_dependent_outputs(partial(evaluate, module), chunk, logits)
            if logits.requires_grad:
                refuse_coupled_gradients(logits, leaves)
            exact = method == "exact" or (method == "auto" and logits.shape[1] <= EXACT_UP_TO)
            if not logits.requires_grad:  # the output does not depend on the inputs
                values.append(torch.zeros(len(logits), dtype=torch.float64, device=logits.device))
            elif exact:
                values.append(_exact(logits, leaves))
            else:
                values.append(_iterated(logits, leaves, tol, max_iter, generator, method))
    result = torch.cat(values)
    require_finite(result, "derivatives")
    return result.mean() if reduction == "mean" else result


def _exact(logits: Tensor, leaves: list[Tensor]) -> Tensor:
    """λ_max of the K × K matrix ``J Jᵀ`` of every sample, ``[N]``."""
    classes = logits.shape[1]
    rows = torch.stack([_gradient(logits[:, k].sum(), leaves) for k in range(classes)], 1)
    softmax = SoftmaxJacobian(logits)
    jacobian = softmax.product(rows.double())
    return softmax.scale**2 * torch.linalg.eigvalsh(jacobian @ jacobian.mT)[:, -1].clamp_min(0)


def _iterated(
    logits: Tensor, leaves: list[Tensor], tol: float, max_iter: int, generator: torch.Generator, method: str
) -> Tensor:
    """`_power`, or with ``"auto"`` `_exact` where an operation of the module can be differentiated once only."""
    try:
        with second_derivatives("Jacobian-vector products", 'choose method="exact"'):
            return _power(logits, leaves, tol, max_iter, generator)
    except SecondDerivativeError:
        if method == "power":
            raise
        return _exact(logits, leaves)


def _power(logits: Tensor, leaves: list[Tensor], tol: float, max_iter: int, generator: torch.Generator) -> Tensor:
    """Accelerated power iteration on ``J Jᵀ`` of all samples at once, ``[N]``."""
    softmax = SoftmaxJacobian(logits)
    dual = torch.zeros_like(logits, requires_grad=True)
    # g = (J_x z)ᵀ dual is linear in `dual`: its vector-Jacobian product is the Jacobian-vector product of z.
    pulled = torch.autograd.grad(logits, leaves, dual, create_graph=True, allow_unused=True, materialize_grads=True)
    refuse_single_derivatives(pulled, "Jacobian-vector products", 'choose method="exact"')
    push = _push_forward(pulled, dual)

    def product(vectors: Tensor) -> Tensor:
        weighted = softmax.product(vectors.unsqueeze(2)).squeeze(2)
        scale = torch.linalg.vector_norm(weighted, dim=1, keepdim=True)
        weighted = weighted / torch.where(scale > 0, scale, 1.0)  # of order one in the passes below
        rows = torch.autograd.grad(
            logits, leaves, weighted.to(logits.dtype), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return scale * softmax.product(push(rows).double().unsqueeze(2)).squeeze(2)

    start = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.device)
    rounding = 1e-6 if logits.dtype == torch.float64 else 1e-2
    found = largest_magnitude_eigenvalue(product, start, tol=tol, max_iter=max_iter, rounding=rounding)
    missed = ~found.converged
    if bool(missed.any()):
        warnings.warn(
            f"Power iteration did not converge in {found.iterations} steps for {int(missed.sum())} of {len(missed)} "
            f"samples: largest relative residual {float((found.residual / found.value)[missed].max()):.2g}, "
            f"tolerance {tol:.1g}; raise `max_iter`.",
            stacklevel=3,
        )
    return softmax.scale**2 * found.value.clamp_min(0)


def _push_forward(pulled: tuple[Tensor, ...], dual: Tensor) -> Callable[[tuple[Tensor, ...]], Tensor]:
    dependent = [i for i, tensor in enumerate(pulled) if tensor.requires_grad]

    def push(tangents: tuple[Tensor, ...]) -> Tensor:
        if not dependent:  # a step function, say: its derivative is zero everywhere
            return torch.zeros_like(dual)
        chosen = [tangents[i] for i in dependent]
        return torch.autograd.grad([pulled[i] for i in dependent], dual, chosen, retain_graph=True)[0]

    return push


def _gradient(output: Tensor, leaves: list[Tensor]) -> Tensor:
    """Gradient with respect to all leaves, ``[N, D]``."""
    grads = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten(1) for grad in grads], 1)


def _variables(inputs: Any) -> tuple[Any, list[Tensor]]:
    """The inputs with floating-point tensors as variables, and these variables."""
    leaves: list[Tensor] = []

    def variable(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            return leaf
        leaves.append(leaf.detach().requires_grad_())
        return leaves[-1].clone()  # the module may work on its input in place

    return tree_map(variable, inputs), leaves


def _logits(outputs: Any, leaves: list[Tensor], count: int) -> Tensor:
    if not leaves:
        raise ValueError("Expected argument `inputs` to hold a floating-point tensor, but got none.")
    if narrow := {leaf.dtype for leaf in leaves} - {torch.float32, torch.float64}:
        raise ValueError(
            "Expected argument `inputs` to be float32 or float64 to be differentiated with respect to them, but got "
            f"{', '.join(map(str, narrow))}."
        )
    if isinstance(outputs, Tensor) and count == 1 and outputs.ndim == 1 and len(outputs) > 1:
        outputs = outputs.unsqueeze(0)  # squeezed by the module
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"Expected argument `module` to return logits [N, K] with K ≥ 2, but got {what}.")
    return outputs


def _check(method: str, reduction: str, tol: float, max_iter: int, chunk_size: int | None) -> None:
    require_choice("method", method, get_args(Method))
    require_choice("reduction", reduction, get_args(Reduction))
    require_positive("tol", tol)
    require_integer("max_iter", max_iter, 1)
    require_integer("chunk_size", chunk_size, 1, or_none=True)

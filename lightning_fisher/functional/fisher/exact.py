"""The exact metric γ, for networks small enough for their full Fisher matrix."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.finite import require_finite, samples_of_a_batch
from lightning_fisher.functional.evaluation.graph import pulled_back, refuse_constant
from lightning_fisher.functional.evaluation.independence import OneByOne
from lightning_fisher.functional.evaluation.module_copy import in_float64, requires_float64
from lightning_fisher.functional.evaluation.samples import (
    num_samples,
    ordinary,
    refuse_closed,
    take,
    with_sample_dimension,
)
from lightning_fisher.functional.fisher.log_determinant import RankPolicy
from lightning_fisher.functional.losses.loss import LossFn, losses_of, output_gradients
from lightning_fisher.functional.losses.loss_parameters import refuse_loss_parameters


def exact_gamma(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    rank_policy: RankPolicy = "error",
) -> Tensor:
    """Log-determinant of the observed Fisher information, ``γ = ln|I_S|``, ``I_S = 1/N Σ_x ∇ℓ ∇ℓᵀ`` (Eq. 2–3).

    From the singular values of the per-sample gradients ``J [N, W]``, with the module in float64 and evaluation mode;
    it is left unchanged. Takes N single-sample passes and one of the batch, with which they are compared, ``N W``
    numbers and O(N W²) operations: for small networks.

    ``I_S`` is singular, and γ = −∞, wherever the loss has a direction in which no sample's loss changes: fewer
    samples than parameters, but also *every* softmax over K free logits (a constant added to all of them changes
    nothing) and every ReLU or batch-norm network (weights can be rescaled between layers). γ is finite for, say,
    a tanh network with K − 1 logits and the last one fixed.

    Args:
        module: The network.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.
        rank_policy: ``"error"``: a singular matrix raises. ``"pseudo"``: it warns, and the product of the non-zero
            eigenvalues is taken; not comparable with a value of full rank.

    Returns:
        γ in nats, a float64 scalar.

    Raises:
        ValueError: If ``I_S`` is singular and the policy is ``"error"``, or an argument doesn't fit.
        InteractionError: A `ValueError`, if samples interact.
        NonFiniteError: If outputs, losses or gradients are infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.fisher.exact import exact_gamma
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> loss = lambda outputs, targets: 0.5 * (outputs - targets).square().squeeze(1)
        >>> inputs = torch.tensor([[1.0], [2.0]])
        >>> targets = net(inputs).detach() - torch.tensor([[1.0], [1.0]])  # gradients 1 and 2
        >>> torch.allclose(exact_gamma(net, inputs, targets, loss_fn=loss).exp(), torch.tensor(2.5).double())
        True
    """
    if rank_policy not in get_args(RankPolicy):
        raise ValueError(
            f"Expected argument `rank_policy` to be one of {get_args(RankPolicy)}, but got {rank_policy!r}."
        )
    refuse_closed(inputs, "inputs")
    refuse_closed(targets, "targets")
    refuse_loss_parameters(module, ordinary(inputs), ordinary(targets), loss_fn)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in parameters)
    if size == 0:
        raise ValueError("Expected argument `module` to have parameters that require gradients, but got none.")
    count = num_samples(inputs)
    with in_float64(module, loss_fn) as inside, differentiable_evaluation(module):
        parameters = [inside(parameter) for parameter in parameters]
        inputs, targets = differentiable((inputs, targets), module)
        with requires_float64():
            outputs = evaluate(module, inputs)
        directions, log_norms, _ = output_gradients(outputs, targets, loss_fn)
        check = OneByOne(partial(evaluate, module), inputs, outputs, directions, log_norms.exp(), parameters)
        rows = []
        for j in range(count):
            one = slice(j, j + 1)
            with samples_of_a_batch([j]), requires_float64():
                seen = with_sample_dimension(evaluate(module, take(inputs, one)))
                directions, log_norms, _ = output_gradients(seen, take(targets, one), loss_fn)
                found = pulled_back(seen, directions, parameters)
                rows.append(torch.cat([part.flatten() for part in found]) * log_norms.exp())
            check.add(j, seen, rows[-1])
        check.finish()
        if not any(bool(row.any()) for row in rows):
            refuse_constant(losses_of(evaluate(module, inputs), targets, loss_fn), parameters)
    jacobian = torch.stack(rows)
    require_finite(jacobian, "per-sample gradients")
    values = torch.linalg.svdvals(jacobian)
    kept = values > max(count, size) * torch.finfo(torch.float64).eps * values[0]
    rank = int(kept.sum())
    if rank < size:
        line = f"The Fisher information of {size} parameters has rank {rank} on {count} samples"
        if rank_policy == "error":
            raise ValueError(f'{line}: γ is −∞. Use more samples, or `rank_policy="pseudo"`.')
        warnings.warn(f"{line}: the log-pseudo-determinant is reported.", stacklevel=2)
    return (2 * values[kept].log() - math.log(count)).sum()

"""The gradient of the regularized loss ``L(B, w) + β R_α(w)``, in the forms of different cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice, require_number
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.graph import dense
from lightning_fisher.functional.evaluation.samples import call_module, num_samples, split
from lightning_fisher.functional.losses.loss import LossFn, losses_of
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.execution import FIXED, check_passes
from lightning_fisher.functional.multipass.finite_difference import (
    check_penalty_options,
    for_all_parameters,
    trainable_parameters,
)
from lightning_fisher.functional.multipass.gradients import combine, finite_or_left_out
from lightning_fisher.functional.multipass.loop import Context, Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.part_losses import PartLosses, penalty_of_parts
from lightning_fisher.functional.multipass.sub_batches import (
    Part,
    check_perturbed,
    draw_perturbed,
    merge_unperturbed,
    part_sizes,
)

GRADIENTS = ("full", "shared")
SCALINGS = ("linear", "sqrt", "none")


class RegularizedGradient(NamedTuple):
    """Gradient of ``L(B, w) + β R_α(w)`` and the parts it is made of.

    Attributes:
        loss: ``L(B, w)``, scalar.
        penalty: ``R_α(w)``, float64 scalar; an unbiased estimate where not all sub-batches are perturbed; ``nan`` where
            it or its gradient isn't finite, and ``gradient`` is the plain one.
        gradient: ``∇L + β ∇R_α``, with β as ``scaling`` has it, in the order of ``module.parameters()``; zeros where
            frozen or unused.
    """

    loss: Tensor
    penalty: Tensor
    gradient: tuple[Tensor, ...]


def regularized_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    beta: float,
    alpha: float = 1e-4,
    num_sub_batches: int = 8,
    gradient: str = "full",
    perturbed: int | None = None,
    scaling: str = "linear",
    generator: torch.Generator | None = None,
    loss_fn: LossFn | None = None,
    passes: str = "loop",
) -> RegularizedGradient:
    r"""Gradient of ``L(B, w) + β R_α(w)`` (Sec. 6, Algorithm 1), for a training loop of your own.

    ``∇R_α = 1/M Σ_i [g_i − h_i]`` with ``g_i = ∇L(B_i, w)`` and ``h_i = ∇L(B_i, ·)|_{w − α g_i}``.

    | ``gradient`` | perturbed | passes of N samples | the gradient |
    | --- | --- | --- | --- |
    | ``"full"`` | all M | 3 | ``∇L(B, w) + β ∇R_α``: the authors' form |
    | ``"full"`` | k of M | 1 + 2 k / M | as above, ``∇R_α`` estimated by ``1/k Σ_{i∈S} [g_i − h_i]`` |
    | ``"shared"`` | all M | 2 | ``1/M Σ_i [(1 + β) g_i − β h_i]`` |
    | ``"shared"`` | k of M | 1 + k / M | ``1/M Σ_i g_i + β/k Σ_{i∈S} [g_i − h_i]`` |

    ``"shared"`` uses the mean of the ``g_i`` as the gradient of ``L``, weighted as in `penalty_gradient`. Where samples
    don't interact that is the same number; a loss that couples them is refused. Batch-norm in training mode then
    normalizes every sub-batch of N/M samples by itself (ghost batch-norm) and moves its running statistics once per
    pass; the plain gradient too is computed in float32 or better.

    ``perturbed=k`` draws k of the M sub-batches, every choice equally likely: an unbiased estimate of ``∇R_α`` whose
    variance grows as ``M / k``. With ``"shared"`` neighboring sub-batches that aren't perturbed are one pass.
    ``scaling="sqrt"`` weighs it with ``β √(k / M)`` instead of β: no longer unbiased, but of the size of ``∇R_α`` where
    the M terms ``g_i − h_i`` are orthogonal, as they nearly are in ReLU networks: the same β then does about the same.
    ``scaling="none"`` weighs every term with ``β/M``, whether or not the others are evaluated.

    This is a training pass: buffers (batch-norm statistics) and random state move on as in one pass at ``w``.
    Gradients in ``.grad`` are not touched.

    Args:
        module: See `gram_matrix`.
        inputs: N samples in dimension 0 of every tensor.
        targets: Class indices or probabilities, or what ``loss_fn`` takes; samples in dimension 0.
        beta: Weight β ≥ 0.
        alpha: Length α of the step along ``g_i``.
        num_sub_batches: M.
        gradient: ``"full"`` or ``"shared"``, see above.
        perturbed: k, or ``None`` for all M.
        scaling: ``"linear"``, ``"sqrt"`` or ``"none"``, see above; the same for ``perturbed=None``.
        generator: Draws the k sub-batches; ``None``: torch's default generator.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [n]``; ``None`` is the mean cross-entropy.
        passes: ``"loop"`` or ``"vmap"``, see `penalty_gradient`; with ``gradient="shared"``, whose passes at ``w`` are
            the training pass, only the loop.

    Returns:
        A `RegularizedGradient`.

    Raises:
        ValueError: If an option doesn't fit, or a parameter is narrower than float32.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import regularized_gradient
        >>> net = torch.nn.Linear(3, 2)
        >>> result = regularized_gradient(net, torch.randn(8, 3), torch.randint(2, (8,)), beta=10.0, num_sub_batches=4)
        >>> for parameter, grad in zip(net.parameters(), result.gradient):
        ...     parameter.grad = grad
    """
    count = num_samples(inputs)
    check_penalty_options(alpha, num_sub_batches, count)
    check_gradient(gradient)
    check_perturbed(perturbed, num_sub_batches)
    check_passes(passes, FIXED)
    check_passes_of(gradient, passes)
    check_scaling(scaling)
    require_number("beta", beta, 0, words="a non-negative number")
    trainable = trainable_parameters(module, count, targets)
    method = FiniteDifference(alpha)
    moved = draw_perturbed(num_sub_batches, perturbed, generator)
    scale = num_sub_batches / sum(moved)
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = own_batch(module, inputs, targets)
        parts = merge_unperturbed(part_sizes(count, num_sub_batches), moved)
        sizes = [part.size for part in parts]
        batches = list(zip(split(inputs, sizes), split(targets, sizes), strict=True))
        weights = [scale * part.size / count if part.perturbed else 0.0 for part in parts]
        if gradient == "shared":
            losses = PartLosses(module, batches, loss_fn, count)
            found = penalty_of_losses(
                losses.functions(),
                trainable,
                method=method,
                weights=weights,
                module=module,
                loss_shares=[size / count for size in sizes],
                measured=losses,
                context=Context(attributes=True, divergence=False),
            )
            _require_parts(losses)
            assert found.loss is not None
            assert found.loss_gradient is not None
            loss, plain = found.loss, found.loss_gradient
        else:
            chosen = [i for i, part in enumerate(parts) if part.perturbed]
            complete = len(chosen) == len(parts)
            losses = PartLosses(module, [batches[i] for i in chosen], loss_fn, count, complete)
            found = penalty_of_parts(
                losses, trainable, method=method, weights=[weights[i] for i in chosen], passes=passes
            )
            outputs = call_module(module, inputs)
            values = losses_of(outputs, targets, loss_fn)
            value = values.mean()
            found_plain = torch.autograd.grad(value, trainable, allow_unused=True)
            if not complete:  # afterwards: it may run the module again
                found = _weighed(found, losses, parts, split(outputs, sizes), batches, values)
            loss, plain = value.detach(), tuple(None if g is None else dense(g) for g in found_plain)
    weight = beta * damping(scaling, scale)
    return RegularizedGradient(
        loss, found.value, for_all_parameters(module, trainable, combine(plain, found.gradient, weight))
    )


def _require_parts(losses: PartLosses) -> None:
    """Refuse a loss whose gradient isn't made of those of the parts."""
    if losses.weights.coupled:
        raise ValueError(
            'Expected argument `loss_fn` to be a mean over samples with `gradient="shared"`, but its value on two '
            "sub-batches together is no average of its values on each: it couples samples (a contrastive loss, or one "
            'of batch statistics), or has a term beside a sum over them; choose `gradient="full"`.'
        )


def _weighed(
    penalty: Penalty,
    losses: PartLosses,
    parts: Sequence[Part],
    outputs: Sequence[Any],
    batches: Sequence[tuple[Any, Any]],
    values: Tensor,
) -> Penalty:
    """An estimate from some of the parts, with the weights that these have in the loss of all."""
    for part, output, (inputs, targets) in zip(parts, outputs, batches, strict=True):
        if not part.perturbed:
            losses.weights.add(inputs, output, targets, values.detach(), part.size)
    scale = losses.scale_of_whole()
    if scale == 1:
        return penalty
    value, gradient = finite_or_left_out(
        penalty.value * scale, tuple(None if g is None else g * scale for g in penalty.gradient)
    )
    return penalty._replace(value=value, gradient=gradient)


def check_gradient(gradient: str) -> None:
    """Refuse an unknown form.

    Raises:
        ValueError: With the forms there are.
    """
    require_choice("gradient", gradient, GRADIENTS)


def damping(scaling: str, scale: float) -> float:
    """What the weight of an unbiased estimate of the penalty is multiplied with.

    Args:
        scaling: ``"linear"``: one. ``"sqrt"``: the root of the part of the penalty that is evaluated, which gives the
            estimate the norm of the whole where its terms are orthogonal. ``"none"``: that part.
        scale: What makes the estimate unbiased: M / k, n.
    """
    return {"linear": 1.0, "sqrt": 1.0 / math.sqrt(scale), "none": 1.0 / scale}[scaling]


def check_scaling(scaling: str) -> None:
    """Refuse an unknown scaling.

    Raises:
        ValueError: With those there are.
    """
    require_choice("scaling", scaling, SCALINGS)


def check_passes_of(gradient: str, passes: str) -> None:
    """Refuse vmap for the shared gradient: what its passes at ``w`` log and return can't be batched.

    Raises:
        ValueError: With the names of both arguments.
    """
    if gradient == "shared" and passes == "vmap":
        raise ValueError('Expected argument `passes` to be "loop" or "auto" with `gradient="shared"`, but got "vmap".')

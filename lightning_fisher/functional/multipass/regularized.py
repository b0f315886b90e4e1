"""The gradient of the regularized loss ``L(B, w) + β R_α(w)``, in the forms of different cost."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice, require_number
from lightning_fisher.functional.evaluation.loss import LossFn
from lightning_fisher.functional.evaluation.module_state import dense
from lightning_fisher.functional.evaluation.samples import num_samples, ordinary, split
from lightning_fisher.functional.multipass.execution import FIXED, Execution, check_passes
from lightning_fisher.functional.multipass.finite_difference import (
    check_penalty_options,
    for_all_parameters,
    loss_of,
    trainable_parameters,
)
from lightning_fisher.functional.multipass.loop import Gradient, penalty_of_losses
from lightning_fisher.functional.multipass.sub_batches import (
    check_perturbed,
    draw_perturbed,
    merge_unperturbed,
    part_sizes,
)

GRADIENTS = ("full", "shared")
SCALINGS = ("linear", "sqrt")


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

    ============  =========  ===================  ============================================================
    ``gradient``  perturbed  passes of N samples  the gradient
    ============  =========  ===================  ============================================================
    ``"full"``    all M      3                    ``∇L(B, w) + β ∇R_α``: the authors' form
    ``"full"``    k of M     1 + 2 k / M          as above, ``∇R_α`` estimated by ``1/k Σ_{i∈S} [g_i − h_i]``
    ``"shared"``  all M      2                    ``1/M Σ_i [(1 + β) g_i − β h_i]``
    ``"shared"``  k of M     1 + k / M            ``1/M Σ_i g_i + β/k Σ_{i∈S} [g_i − h_i]``
    ============  =========  ===================  ============================================================

    ``"shared"`` uses the mean of the ``g_i`` as the gradient of ``L``. Where samples don't interact that is the same
    number. Batch-norm in training mode then normalizes every sub-batch of N/M samples by itself (ghost batch-norm) and
    moves its running statistics once a pass; the plain gradient too is computed in float32 or better.

    ``perturbed=k`` draws k of the M sub-batches, every choice equally likely: an unbiased estimate of ``∇R_α`` whose
    variance grows as ``M / k``. With ``"shared"`` neighboring sub-batches that aren't perturbed are one pass.
    ``scaling="sqrt"`` weighs it with ``β √(k / M)`` instead of β: no longer unbiased, but of the size of ``∇R_α`` where
    the M terms ``g_i − h_i`` are orthogonal, as they nearly are in ReLU networks: the same β then does about the same.

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
        scaling: ``"linear"`` or ``"sqrt"``, see above; the same for ``perturbed=None``.
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
    moved = draw_perturbed(num_sub_batches, perturbed, generator)
    scale = num_sub_batches / sum(moved)
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = ordinary((inputs, targets), trainable[0].dtype)
        shared = gradient == "shared"
        parts = merge_unperturbed(part_sizes(count, num_sub_batches), moved)
        sizes = [part.size for part in parts]
        batches = list(zip(split(inputs, sizes), split(targets, sizes), parts, strict=True))
        if not shared:
            batches = [batch for batch in batches if batch[2].perturbed]
        weights = [scale * part.size / count if part.perturbed else 0.0 for *_, part in batches]
        if shared:
            found = penalty_of_losses(
                [loss_of(module, x, y, loss_fn) for x, y, _ in batches],
                trainable,
                alpha=alpha,
                weights=weights,
                module=module,
                loss_shares=[part.size / count for *_, part in batches],
            )
            assert found.loss is not None
            assert found.loss_gradient is not None
            loss, plain = found.loss, found.loss_gradient
        else:
            found = Execution(passes).penalty(
                lambda batch: loss_of(module, batch[0], batch[1], loss_fn)(),
                [(x, y) for x, y, _ in batches],
                trainable,
                alpha=alpha,
                weights=weights,
                module=module,
            )
            value = loss_of(module, inputs, targets, loss_fn)()
            found_plain = torch.autograd.grad(value, trainable, allow_unused=True)
            loss, plain = value.detach(), tuple(None if g is None else dense(g) for g in found_plain)
    weight = beta * damping(scaling, scale)
    return RegularizedGradient(
        loss, found.value, for_all_parameters(module, trainable, combine(plain, found.gradient, weight))
    )


def combine(plain: Gradient, penalty: Gradient, beta: float) -> Gradient:
    """``plain + β penalty``, ``None`` where neither is there."""
    return tuple(
        (None if r is None else beta * r) if g is None else g if r is None else g + beta * r
        for g, r in zip(plain, penalty, strict=True)
    )


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
            estimate the norm of the whole where its terms are orthogonal.
        scale: What makes the estimate unbiased: M / k, n.
    """
    return 1.0 if scaling == "linear" else 1.0 / math.sqrt(scale)


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

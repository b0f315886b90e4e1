"""``R_α`` by other finite differences than the paper's: forward, central, and steps of a given length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice
from lightning_fisher.functional.evaluation.samples import num_samples, ordinary, split
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.functional.multipass.finite_difference import (
    check_penalty_options,
    for_all_parameters,
    loss_of,
    trainable_parameters,
)
from lightning_fisher.functional.multipass.loop import finite_or_left_out
from lightning_fisher.functional.multipass.methods.sharpness_aware import ascent
from lightning_fisher.functional.multipass.perturbed import (
    Evaluation,
    Loss,
    PerturbedPasses,
    accumulate,
    linear,
    norm,
    scaled,
)
from lightning_fisher.functional.multipass.sub_batches import part_sizes

# Where the two gradients are taken, in steps; each difference spans one step.
DIFFERENCES = {"backward": (0.0, -1.0), "forward": (1.0, 0.0), "central": (0.5, -0.5)}
STEPS = ("fixed", "normalized")


def difference_penalty_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    alpha: float = 1e-4,
    num_sub_batches: int = 8,
    difference: str = "backward",
    step: str = "fixed",
    loss_fn: LossFn | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""`penalty_gradient` with a choice of the finite difference; the defaults are bit for bit `penalty_gradient`.

    With ``g_i = ∇L(B_i, w)`` and the step ``e_i = α g_i`` (``"fixed"``) held constant,

    ==============  ====================================================  ===========
    ``difference``  ``∇R_α = 1/M Σ_i`` of                                 passes of N
    ==============  ====================================================  ===========
    ``"backward"``  ``g_i − ∇L(B_i, w − e_i)``                            2
    ``"forward"``   ``∇L(B_i, w + e_i) − g_i``                            2
    ``"central"``   ``∇L(B_i, w + e_i/2) − ∇L(B_i, w − e_i/2)``           3
    ==============  ====================================================  ===========

    and ``R_α`` the same difference of losses. With ``step="normalized"`` the step is ``e_i = α g_i/‖g_i‖``, of length
    α whatever the gradient, and the difference is multiplied with ``‖g_i‖``. On a smooth network all of them tend to
    ``α/M Σ_i H_i g_i``, half the gradient of ``α/M Σ_i ‖g_i‖²``: the same β means the same. In ReLU networks they
    differ: which kinks are crossed depends on direction and length (Karakida et al. 2023 find forward differences
    with large steps to do better).

    **The sub-batch regularizer of Geiping et al. (2022)**, which adds ``(η/4) s (∇L(B_i, w + ε g_i/‖g_i‖) −
    g_i)‖g_i‖/ε`` to every sub-batch gradient (η the learning rate, s the strength), is ``difference="forward"`` or
    ``"central"``, ``step="normalized"``, ``alpha=ε``, with the weight ``β = η s/(4α)``. The same β with any other
    step approximates the same limit, ``(η s/4) H_i g_i``.

    Every pass is an extra one: weights, buffers, gradients and random state are bit-identical afterwards.

    Args:
        module: See `penalty_gradient`.
        inputs: N samples in dimension 0 of every tensor.
        targets: Class indices or probabilities, or what ``loss_fn`` takes; samples in dimension 0.
        alpha: α, the step along ``g_i``, or its length with ``step="normalized"``.
        num_sub_batches: M.
        difference: ``"backward"`` (the paper's), ``"forward"`` or ``"central"``.
        step: ``"fixed"`` (the paper's) or ``"normalized"``.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [n]``; ``None`` is the mean cross-entropy.

    Returns:
        ``R_α`` and ``∇R_α``, as `penalty_gradient`.

    Raises:
        ValueError: If an option doesn't fit, or a parameter is narrower than float32, complex or sparse.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import difference_penalty_gradient
        >>> net, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
        >>> value, grads = difference_penalty_gradient(net, x, y, alpha=0.01, difference="central", step="normalized")
        >>> [grad.shape for grad in grads]
        [torch.Size([2, 3]), torch.Size([2])]
    """
    count = num_samples(inputs)
    check_penalty_options(alpha, num_sub_batches, count)
    require_choice("difference", difference, tuple(DIFFERENCES))
    require_choice("step", step, STEPS)
    trainable = trainable_parameters(module, count, targets)
    values: list[Tensor] = []
    total: list[Tensor | None] = [None] * len(trainable)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        PerturbedPasses(module, trainable, "the penalty", live=False) as passes,
    ):
        inputs, targets = ordinary((inputs, targets), trainable[0].dtype)
        sizes = part_sizes(count, num_sub_batches)
        for x, y, size in zip(split(inputs, sizes), split(targets, sizes), sizes, strict=True):
            value, gradient = _difference(passes, loss_of(module, x, y, loss_fn), alpha, difference, step)
            values.append(value * (size / count))
            accumulate(total, gradient, size / count)
    value, found = finite_or_left_out(torch.stack(values).sum(), tuple(total))
    return value, for_all_parameters(module, trainable, found)


def _difference(
    passes: PerturbedPasses, loss: Loss, alpha: float, difference: str, step: str
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The difference of losses, float64, and of gradients, of a sub-batch."""
    here = passes.here(loss)
    if step == "fixed":
        direction, length = here.gradient, alpha
    else:
        direction, length = ascent(passes.parameters, here.gradient, alpha), 1.0

    def at(place: float) -> Evaluation:
        return here if place == 0 else passes.there(loss, direction, place * length)

    upper, lower = (at(place) for place in DIFFERENCES[difference])
    value = upper.value.double() - lower.value.double()
    gradient = linear((1.0, upper.gradient), (-1.0, lower.gradient))
    if step == "normalized":
        size = norm(here.gradient)
        value, gradient = value * size, scaled(gradient, size)
    return value, gradient

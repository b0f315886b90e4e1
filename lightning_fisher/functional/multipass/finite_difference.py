"""The regularizer's value and gradient, ``R_α`` and ``∇R_α`` of Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer, require_number
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.samples import has_tensors, num_samples, split
from lightning_fisher.functional.evaluation.state.attributes import preserved_attributes
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.execution import FIXED, check_passes
from lightning_fisher.functional.multipass.part_losses import PartLosses, penalty_of_parts
from lightning_fisher.functional.multipass.sub_batches import part_sizes


def penalty_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    alpha: float = 1e-4,
    num_sub_batches: int = 8,
    loss_fn: LossFn | None = None,
    passes: str = "loop",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""``R_α`` and ``∇R_α`` of a batch (Eq. 7 of Sec. 6, Algorithm 1).

    The batch is split into M consecutive sub-batches ``B_i`` of equal size. With ``g_i = ∇L(B_i, w)`` held constant:

    ``R_α = 1/M Σ_i [L(B_i, w) − L(B_i, w − α g_i)]``,
    ``∇R_α = 1/M Σ_i [g_i − ∇L(B_i, ·)|_{w − α g_i}]``.

    In ReLU networks this finite difference is *not* a Hessian-vector product: most of it is crossed kinks. The
    sub-batches are those of `torch.tensor_split`. Where M does not divide N, or the loss divides by something else than
    the number of samples (labels that aren't ignored, class weights, a mask), they weigh what they weigh in the loss of
    the batch instead of 1/M; one without labels weighs nothing. A scalar ``loss_fn`` is asked for that on the outputs,
    for which the host waits.

    Batch-norm layers stay in the module's current mode; both passes of a sub-batch start from the same buffers and the
    same random state (dropout masks), which goes on from one sub-batch to the next. Afterwards weights, buffers,
    gradients and random state are bit-identical. The passes run in float32 or better, with autocast and TF32 off,
    whatever surrounds the call.

    Cost: 2 forward and backward passes of the batch, in sub-batches; memory of three gradients.

    Args:
        module: See `gram_matrix`.
        inputs: N samples in dimension 0 of every tensor.
        targets: Class indices or probabilities, or what ``loss_fn`` takes; samples in dimension 0.
        alpha: Length α of the step along ``g_i``.
        num_sub_batches: M.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [n]``; ``None`` is the mean cross-entropy.
        passes: ``"loop"``: the sub-batches one after the other. ``"vmap"``: all of them in one pass at ``w`` and one at
            the ``w − α g_i``, by `torch.func.vmap`: the same up to rounding (dropout masks are others), in two passes
            instead of 2 M (in the first call for a module and batches of one structure one sub-batch also takes two
            ordinary passes, to compare with), at the memory of 4 M gradients; for a GPU, which takes as long to be
            told of a pass of few samples as of one of many. The module has to be one that vmap can do (no ``.item()``,
            no control flow that depends on values). Sub-batches of different sizes are evaluated in a loop.

    Returns:
        ``R_α`` (float64 scalar) and ``∇R_α`` in the order of ``module.parameters()``; zeros for parameters that are
        frozen or that the loss does not depend on. Where either isn't finite (the loss at ``w − α g_i`` overflows,
        say), ``nan`` and zeros throughout, so that a step that adds it is the plain one; the host doesn't wait for
            that.

    Raises:
        ValueError: If α or M don't fit, a parameter is narrower than float32, complex or sparse, or vmap is asked for
            and can't do the module.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import penalty_gradient
        >>> net = torch.nn.Linear(3, 2)
        >>> value, grads = penalty_gradient(net, torch.randn(8, 3), torch.randint(2, (8,)), num_sub_batches=4)
        >>> [grad.shape for grad in grads]
        [torch.Size([2, 3]), torch.Size([2])]
    """
    check_penalty_options(alpha, num_sub_batches)
    return gradient_of_penalty(
        module,
        inputs,
        targets,
        FiniteDifference(alpha),
        num_sub_batches=num_sub_batches,
        loss_fn=loss_fn,
        passes=passes,
    )


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

    | ``difference`` | ``∇R_α = 1/M Σ_i`` of | passes of N |
    | --- | --- | --- |
    | ``"backward"`` | ``g_i − ∇L(B_i, w − e_i)`` | 2 |
    | ``"forward"`` | ``∇L(B_i, w + e_i) − g_i`` | 2 |
    | ``"central"`` | ``∇L(B_i, w + e_i/2) − ∇L(B_i, w − e_i/2)`` | 3 |

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
    check_penalty_options(alpha, num_sub_batches)
    method = FiniteDifference(alpha, difference, step)  # type: ignore[arg-type]
    return gradient_of_penalty(
        module, inputs, targets, method, num_sub_batches=num_sub_batches, loss_fn=loss_fn, passes="loop"
    )


def gradient_of_penalty(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    method: FiniteDifference,
    *,
    num_sub_batches: int,
    loss_fn: LossFn | None,
    passes: str,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`penalty_gradient` of any of the finite differences; arguments as there."""
    count = num_samples(inputs)
    check_penalty_options(method.alpha, num_sub_batches, count)
    check_passes(passes, FIXED)
    trainable = trainable_parameters(module, count, targets)
    with torch.inference_mode(False), torch.enable_grad(), preserved_attributes(module):
        inputs, targets = own_batch(module, inputs, targets)
        sizes = part_sizes(count, num_sub_batches)
        parts = list(zip(split(inputs, sizes), split(targets, sizes), strict=True))
        penalty = penalty_of_parts(
            PartLosses(module, parts, loss_fn, count),
            trainable,
            method=method,
            weights=[size / count for size in sizes],
            passes=passes,
        )
    return penalty.value, for_all_parameters(module, trainable, penalty.gradient)


def trainable_parameters(module: nn.Module, count: int, targets: Any) -> list[nn.Parameter]:
    """The parameters that require gradients.

    Raises:
        ValueError: If there is none, or there aren't as many targets as inputs.
    """
    if has_tensors(targets) and num_samples(targets, "targets") != count:
        raise ValueError(f"Expected argument `targets` to have {count} samples, but got {num_samples(targets)}.")
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("Expected the module to have parameters that require gradients, but it has none.")
    return trainable


def for_all_parameters(
    module: nn.Module, trainable: Sequence[nn.Parameter], gradient: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The gradient in the order of ``module.parameters()``, zeros for those without one."""
    by_parameter = dict(zip(map(id, trainable), gradient, strict=True))
    parts = [(p, by_parameter.get(id(p))) for p in module.parameters()]
    return tuple(torch.zeros_like(p, requires_grad=False) if g is None else g for p, g in parts)


def check_penalty_options(alpha: float, num_sub_batches: int, count: int | None = None) -> None:
    """Refuse an α or M that makes no sense, for a batch of ``count`` samples if given.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    limits = torch.finfo(torch.float32)  # below and above, w − α g is w or overflows whatever g is
    require_number("alpha", alpha, limits.tiny, limits.max, words="a positive number in float32's range")
    require_integer("num_sub_batches", num_sub_batches, 1)
    if count is not None and num_sub_batches > count:
        raise ValueError(
            f"Expected argument `num_sub_batches` to be at most the batch's {count} samples, but got {num_sub_batches}."
        )

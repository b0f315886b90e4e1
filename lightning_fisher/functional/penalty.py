"""The regulariser's value and gradient, ``R_α`` and ``∇R_α`` of Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_fisher.functional.divergence import Divergence, DivergenceAccumulator
from lightning_fisher.functional.loss import LossFn, call_module, mean_loss, num_samples, ordinary
from lightning_fisher.functional.precision import (
    RefuseAutocast,
    device_types,
    full_precision,
    require_full_precision,
)
from lightning_fisher.functional.state import (
    BufferSnapshot,
    RandomStateSnapshot,
    dense,
    refuse_renormalised_embeddings,
)


class Penalty(NamedTuple):
    """What one evaluation of the regulariser gives.

    Attributes:
        value: ``R_α``, float64 scalar.
        gradient: ``∇R_α``, one tensor a given parameter; ``None`` where the loss doesn't depend on it.
        divergence: Spread of the sub-batch gradients ``g_i``.
    """

    value: Tensor
    gradient: tuple[Tensor | None, ...]
    divergence: Divergence


def penalty_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    alpha: float = 1e-4,
    num_sub_batches: int = 8,
    loss_fn: LossFn | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""``R_α`` and ``∇R_α`` of a batch (Eq. 7 of Sec. 6, Algorithm 1).

    The batch is split into M consecutive sub-batches ``B_i`` of equal size. With ``g_i = ∇L(B_i, w)`` held constant:

    ``R_α = 1/M Σ_i [L(B_i, w) − L(B_i, w − α g_i)]``,
    ``∇R_α = 1/M Σ_i [g_i − ∇L(B_i, ·)|_{w − α g_i}]``.

    In ReLU networks this finite difference is *not* a Hessian-vector product: most of it is crossed kinks. Where M does
    not divide N, the sub-batches are those of `torch.tensor_split`, weighted by their size.

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

    Returns:
        ``R_α`` (float64 scalar) and ``∇R_α`` in the order of ``module.parameters()``; zeros for parameters that are
        frozen or that the loss does not depend on.

    Raises:
        ValueError: If α or M don't fit, or a parameter is narrower than float32.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import penalty_gradient
        >>> net = torch.nn.Linear(3, 2)
        >>> value, grads = penalty_gradient(net, torch.randn(8, 3), torch.randint(2, (8,)), num_sub_batches=4)
        >>> [grad.shape for grad in grads]
        [torch.Size([2, 3]), torch.Size([2])]
    """
    count = num_samples(inputs)
    check_penalty_options(alpha, num_sub_batches, count)
    if num_samples(targets, "targets") != count:
        raise ValueError(f"Expected argument `targets` to have {count} samples, but got {num_samples(targets)}.")
    parameters = list(module.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise ValueError("Expected the module to have parameters that require gradients, but it has none.")
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = ordinary((inputs, targets), trainable[0].dtype)
        parts = list(zip(split(inputs, num_sub_batches), split(targets, num_sub_batches), strict=True))

        def loss(x: Any, y: Any) -> Callable[[], Tensor]:
            return lambda: mean_loss(call_module(module, x), y, loss_fn)

        penalty = penalty_of_losses(
            [loss(x, y) for x, y in parts],
            trainable,
            alpha=alpha,
            weights=[num_samples(x) / count for x, _ in parts],
            module=module,
        )
    by_parameter = dict(zip(map(id, trainable), penalty.gradient, strict=True))
    gradients = (by_parameter.get(id(p)) for p in parameters)
    return penalty.value, tuple(
        p.new_zeros(()).expand_as(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    )


def penalty_of_losses(
    losses: Sequence[Callable[[], Tensor]],
    parameters: Sequence[nn.Parameter],
    *,
    alpha: float,
    weights: Sequence[float],
    module: nn.Module,
    on_pass: Callable[[], None] = lambda: None,
) -> Penalty:
    """`penalty_gradient` of losses that are given as functions of nothing, one a sub-batch.

    Args:
        losses: Each runs the module on its sub-batch and returns the scalar mean loss; called twice.
        parameters: The parameters to differentiate with respect to; moved and put back.
        alpha: Length α of the step.
        weights: Share of each sub-batch in the batch; adds up to one.
        module: Whose buffers are restored after every pass, and whose devices' random state.
        on_pass: Called after every pass: restores what else the losses touch.

    Returns:
        A `Penalty`.

    Raises:
        ValueError: If a parameter is narrower than float32.
    """
    parameters = list(parameters)
    require_full_precision(parameters, "the penalty")
    refuse_renormalised_embeddings(module)
    devices = {p.device for p in parameters}
    types = device_types(module)
    values: list[Tensor] = []
    total: list[Tensor | None] = [None] * len(parameters)
    spread = DivergenceAccumulator()
    weights_now: list[Tensor] = list(parameters)
    originals = [p.detach().clone() for p in parameters]
    before = RandomStateSnapshot(devices)
    buffers = BufferSnapshot(module)

    def evaluate(loss: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        try:
            with nullcontext() if values else RefuseAutocast(types):  # the first pass tells
                value = loss()
            gradient = torch.autograd.grad(value, parameters, allow_unused=True)
            gradient = tuple(None if g is None else dense(g) for g in gradient)
        finally:
            buffers.restore()
            on_pass()
        return value.detach(), gradient

    try:
        with torch.compiler.set_stance("force_eager"), full_precision(types):
            for loss, weight in zip(losses, weights, strict=True):
                masks = RandomStateSnapshot(devices)
                value, gradient = evaluate(loss)
                after = RandomStateSnapshot(devices)
                if all(g is None for g in gradient):
                    raise ValueError(
                        "Expected a loss that depends on the trainable parameters, but none of them gets a gradient "
                        "(activation checkpointing needs `use_reentrant=False`)."
                    )
                moved = [(p, g) for p, g in zip(parameters, gradient, strict=True) if g is not None]
                spread.add([g for _, g in moved])
                with torch.no_grad():
                    torch._foreach_add_([p for p, _ in moved], [g for _, g in moved], alpha=-alpha)
                masks.restore()
                stepped_value, stepped_gradient = evaluate(loss)
                after.restore()
                with torch.no_grad():
                    torch._foreach_copy_(weights_now, originals)
                    values.append((value.double() - stepped_value.double()) * weight)
                    for i, (here, there) in enumerate(zip(gradient, stepped_gradient, strict=True)):
                        if here is None and there is None:
                            continue
                        difference = _difference(here, there).mul_(weight)
                        total[i] = difference if total[i] is None else total[i].add_(difference)  # type: ignore[union-attr]
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights_now, originals)
        before.restore()
    return Penalty(torch.stack(values).sum(), tuple(total), spread.compute())


def _difference(here: Tensor | None, there: Tensor | None) -> Tensor:
    if here is None:
        assert there is not None
        return -there
    return here.clone() if there is None else here - there


def check_penalty_options(alpha: float, num_sub_batches: int, count: int | None = None) -> None:
    """Refuse an α or M that makes no sense, for a batch of ``count`` samples if given.

    Raises:
        ValueError: With the argument's name, what is allowed and what came.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < float("inf"):
        raise ValueError(f"Expected argument `alpha` to be a positive number, but got {alpha!r}.")
    if isinstance(num_sub_batches, bool) or not isinstance(num_sub_batches, int) or num_sub_batches < 1:
        raise ValueError(f"Expected argument `num_sub_batches` to be a positive integer, but got {num_sub_batches!r}.")
    if count is not None and num_sub_batches > count:
        raise ValueError(
            f"Expected argument `num_sub_batches` to be at most the batch's {count} samples, but got {num_sub_batches}."
        )


def split(tree: Any, parts: int) -> list[Any]:
    """``parts`` consecutive pieces of every tensor in a nested structure, as equal as can be."""
    leaves, spec = tree_flatten(tree)
    pieces = [leaf.tensor_split(parts) if isinstance(leaf, Tensor) and leaf.ndim else [leaf] * parts for leaf in leaves]
    return [tree_unflatten(list(piece), spec) for piece in zip(*pieces, strict=True)]

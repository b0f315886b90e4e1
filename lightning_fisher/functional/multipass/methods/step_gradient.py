"""The gradient that a method hands to the optimizer, for a training loop of your own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import is_integer
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.samples import num_samples, split
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.functional.multipass.finite_difference import for_all_parameters, trainable_parameters
from lightning_fisher.functional.multipass.gradients import Gradient, combine
from lightning_fisher.functional.multipass.loop import Context, Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.part_losses import PartLosses
from lightning_fisher.functional.multipass.passes import Method
from lightning_fisher.functional.multipass.sub_batches import part_sizes


class StepGradient(NamedTuple):
    """The gradient that a method hands to the optimizer.

    Attributes:
        loss: ``L(B, w)``, float64 scalar.
        penalty: What the method adds to the loss, float64 scalar: ``gradient`` is ``∇(loss + penalty)`` with the
            perturbations and what they are multiplied with held constant. ``nan`` where it or its gradient isn't finite
            (in any sub-batch); ``gradient`` is the plain one then.
        gradient: In the order of ``module.parameters()``; zeros where frozen or unused.
    """

    loss: Tensor
    penalty: Tensor
    gradient: tuple[Tensor, ...]


def multipass_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    method: Method,
    *,
    weight: float = 1.0,
    num_sub_batches: int = 1,
    loss_fn: LossFn | None = None,
    seed: int = 0,
) -> StepGradient:
    r"""Gradient of ``L(B, w) + c Σ_i n_i/N m(B_i)`` for a method m of your own.

    This is a training pass: batch-norm statistics, attributes that the forward pass sets and the random state move on
    as in one pass at ``w`` (one a sub-batch), and the passes at other points have the same dropout masks. Weights are
    put back bit for bit, ``.grad`` is not touched, and the passes run in float32 or better with autocast and TF32 off.

    Cost: a forward and backward pass of the batch, and one for every point that the method asks for; memory of three
    gradients and a copy of the weights.

    Args:
        module: The network, in its current mode.
        inputs: N samples in dimension 0 of every tensor.
        targets: Class indices or probabilities, or what ``loss_fn`` takes; samples in dimension 0.
        method: ``SubBatch → Evaluation``: what it adds to the loss of a sub-batch, and the gradient of that.
        weight: c ≥ 0; 0: the plain gradient, in one pass.
        num_sub_batches: M ≤ N; the sub-batches are those of `torch.tensor_split`, weighted by what they weigh in the
            loss of the batch.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [n]``; ``None`` is the mean cross-entropy.
        seed: Of what the method draws by ``part.noise()``; another one every step.

    Returns:
        A `StepGradient`.

    Raises:
        ValueError: If an option doesn't fit, or a parameter is narrower than float32, complex or sparse.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import multipass_gradient
        >>> def sharpness(part):
        ...     return part.at(part.ascent(0.05)) - part.here
        >>> net = torch.nn.Linear(3, 2)
        >>> step = multipass_gradient(net, torch.randn(8, 3), torch.randint(2, (8,)), sharpness)
        >>> for parameter, grad in zip(net.parameters(), step.gradient):
        ...     parameter.grad = grad
    """
    count = num_samples(inputs)
    if not is_integer(num_sub_batches) or not 1 <= num_sub_batches <= count:
        raise ValueError(
            f"Expected argument `num_sub_batches` to be an integer from 1 to the batch's {count} samples, "
            f"but got {num_sub_batches!r}."
        )
    trainable = trainable_parameters(module, count, targets)
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = own_batch(module, inputs, targets)
        sizes = part_sizes(count, num_sub_batches)
        shares = [size / count for size in sizes]
        losses = PartLosses(module, list(zip(split(inputs, sizes), split(targets, sizes), strict=True)), loss_fn, count)
        names = {id(p): name for name, p in module.named_parameters()}
        found = penalty_of_losses(
            losses.functions(),
            trainable,
            method=method,
            weights=shares if weight else [0.0] * len(shares),
            module=module,
            loss_shares=shares,
            measured=losses if num_sub_batches > 1 else None,
            context=Context(
                [names[id(p)] for p in trainable],
                [seed * 1009 + i for i in range(len(sizes))],
                divergence=False,
                attributes=True,
            ),
        )
    if losses.weights.coupled:
        raise ValueError(
            "Expected argument `loss_fn` to be a mean over samples with `num_sub_batches` > 1, but its value on two "
            "sub-batches together is no average of its values on each: it couples samples, or has a term beside a sum "
            "over them."
        )
    return of_penalty(module, trainable, found, found.gradient, weight)


def of_penalty(
    module: nn.Module,
    trainable: list[nn.Parameter],
    plain: Penalty,
    penalty: Gradient,
    weight: float,
    value: Any = None,
) -> StepGradient:
    """The step of a loss and a penalty.

    Args:
        module: Whose parameters these are.
        trainable: Those that require gradients.
        plain: Has the loss and its gradient.
        penalty: The penalty's gradient.
        weight: Of the penalty.
        value: Of the penalty; ``None``: that in ``plain``.
    """
    assert plain.loss is not None
    assert plain.loss_gradient is not None
    gradient = combine(plain.loss_gradient, penalty, weight) if weight else plain.loss_gradient
    value = plain.value if value is None else value
    return StepGradient(plain.loss, weight * value, for_all_parameters(module, trainable, gradient))

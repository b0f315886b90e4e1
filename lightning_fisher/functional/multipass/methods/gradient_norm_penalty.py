"""A penalty on the gradient's norm, by a gradient at a point up the slope."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_fisher.arguments import require_number, require_positive
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.functional.multipass.methods.sharpness_aware import Sharpness
from lightning_fisher.functional.multipass.methods.step_gradient import StepGradient, multipass_gradient


def gradient_norm_penalty_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    radius: float = 0.1,
    coefficient: float = 0.8,
    num_sub_batches: int = 1,
    loss_fn: LossFn | None = None,
) -> StepGradient:
    r"""Gradient of ``L + λ‖∇L‖₂`` by a finite difference (GNP; Zhao, Zhang & Hu 2022, Algorithm 1).

    ``(1 − a) ∇L(w) + a ∇L(w + r g/‖g‖)`` with ``g = ∇L(w)``: by the forward difference ``∇‖∇L‖ ≈ [∇L(w + r g/‖g‖) −
    ∇L(w)] / r`` the penalty's weight is ``λ = a r``. ``a = 1`` is SAM with ρ = r, ``a = 0`` the plain gradient. This
    is the paper's formula; the authors' code normalizes the first gradient by default (``norm_perturbations``), which
    this does not.

    Weights, buffers, random state and precision as in `sharpness_aware_gradient`. Where ``g`` is zero the
    perturbation is.

    Cost: 2 forward and backward passes of the batch; memory of three gradients and a copy of the weights.

    Args:
        module: The network, in its current mode.
        inputs: N samples in dimension 0 of every tensor.
        targets: Class indices or probabilities, or what ``loss_fn`` takes; samples in dimension 0.
        radius: r > 0.
        coefficient: a from 0 to 1; 0: one pass.
        num_sub_batches: M; more than one: the mean of this over the sub-batches of `torch.tensor_split`.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [n]``; ``None`` is the mean cross-entropy.

    Returns:
        A `StepGradient` with ``penalty = a [L(w + r g/‖g‖) − L(w)] ≈ λ‖g‖``; ``nan``, and the plain gradient, where
        that isn't finite.

    Raises:
        ValueError: If an option doesn't fit, or a parameter is narrower than float32, complex or sparse.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import gradient_norm_penalty_gradient
        >>> net = torch.nn.Linear(3, 2)
        >>> result = gradient_norm_penalty_gradient(net, torch.randn(8, 3), torch.randint(2, (8,)))
        >>> for parameter, grad in zip(net.parameters(), result.gradient):
        ...     parameter.grad = grad
    """
    require_positive("radius", radius)
    require_number("coefficient", coefficient, 0, 1)
    return multipass_gradient(
        module,
        inputs,
        targets,
        Sharpness(radius),  # the penalty is a times the sharpness: a(h − g) + g = (1 − a) g + a h
        weight=coefficient,
        num_sub_batches=num_sub_batches,
        loss_fn=loss_fn,
    )

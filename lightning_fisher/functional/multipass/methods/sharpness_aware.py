"""Sharpness-aware minimization: SAM, ASAM, m-SAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_non_negative
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.functional.multipass.finite_difference import loss_of
from lightning_fisher.functional.multipass.loop import Gradient
from lightning_fisher.functional.multipass.perturbed import (
    PerturbedPasses,
    StepGradient,
    finite_or_plain,
    norm,
    scaled,
    step_gradient,
)

ADAPTIVE = (False, True, "weights")


def sharpness_aware_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    rho: float = 0.05,
    adaptive: bool | str = False,
    eta: float = 0.0,
    num_sub_batches: int = 1,
    loss_fn: LossFn | None = None,
) -> StepGradient:
    r"""Gradient of sharpness-aware minimization, ``∇L(B, ·)|_{w + e}`` with ``e ≈ argmax_{‖e‖ ≤ ρ} L(B, w + e)``.

    SAM (Foret et al. 2021, Eq. 2): with ``g = ∇L(B, w)``, ``e = ρ g / ‖g‖₂``, one norm over all trainable parameters.
    ASAM (Kwon et al. 2021): ``e = ρ T² g / ‖T g‖₂`` with ``T = |w| + η``; the ρ that suits it is about ten times
    larger. m-SAM (Foret et al. 2021, Sec. 4): a perturbation for each of M sub-batches, and the mean of their
    gradients.

    This is a training pass: batch-norm statistics and random state move on as in one pass at ``w`` (one a sub-batch),
    and the pass at ``w + e`` has the same dropout masks. Weights are put back bit for bit, ``.grad`` is not touched,
    and the passes run in float32 or better with autocast and TF32 off. Where ``g`` is zero, ``e`` is.

    Cost: 2 forward and backward passes of the batch; memory of two gradients and a copy of the weights.

    Args:
        module: The network, in its current mode.
        inputs: N samples in dimension 0 of every tensor.
        targets: Class indices or probabilities, or what ``loss_fn`` takes; samples in dimension 0.
        rho: Radius ρ ≥ 0; 0: the plain gradient, in one pass.
        adaptive: ``False``: SAM. ``True``: ASAM with ``T = |w| + η`` for every parameter. ``"weights"``: as the
            authors' code has it, ``T = |w| + η`` for parameters with "weight" in their name, 1 for the others.
        eta: η ≥ 0; only with ``adaptive``. The default of the authors' class is 0.01.
        num_sub_batches: M; the sub-batches are those of `torch.tensor_split`, weighted by size.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [n]``; ``None`` is the mean cross-entropy.

    Returns:
        A `StepGradient` with ``penalty = L(B, w + e) − L(B, w)``, the sharpness. Where the loss or its gradient at
        ``w + e`` isn't finite, the penalty is ``nan`` and the gradient the plain one.

    Raises:
        ValueError: If an option doesn't fit, or a parameter is narrower than float32, complex or sparse.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import sharpness_aware_gradient
        >>> net = torch.nn.Linear(3, 2)
        >>> result = sharpness_aware_gradient(net, torch.randn(8, 3), torch.randint(2, (8,)), rho=0.05)
        >>> for parameter, grad in zip(net.parameters(), result.gradient):
        ...     parameter.grad = grad
        >>> bool(result.penalty > 0)
        True
    """
    require_non_negative("rho", rho)
    require_non_negative("eta", eta)
    if not any(adaptive is allowed or (isinstance(adaptive, str) and adaptive == allowed) for allowed in ADAPTIVE):
        raise ValueError(f"Expected argument `adaptive` to be one of {ADAPTIVE}, but got {adaptive!r}.")
    if eta and not adaptive:
        raise ValueError(f"Expected argument `eta` to be 0 without `adaptive`, but got {eta!r}.")
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    adapted = [adaptive is True or (adaptive == "weights" and "weight" in name) for name in names]

    def method(passes: PerturbedPasses, x: Any, y: Any) -> tuple[Tensor, Tensor, Gradient]:
        loss = loss_of(module, x, y, loss_fn)
        here = passes.here(loss)
        if rho == 0:
            return here.value, torch.zeros_like(here.value), here.gradient
        there = passes.there(loss, ascent(passes.parameters, here.gradient, rho, adapted, eta))
        return finite_or_plain(here, there.value.double() - here.value.double(), there.gradient)

    return step_gradient(
        module, inputs, targets, method, what="the perturbed gradient", num_sub_batches=num_sub_batches
    )


def ascent(
    parameters: Sequence[Tensor], gradient: Gradient, rho: float, adapted: Sequence[bool] = (), eta: float = 0.0
) -> Gradient:
    """``ρ T² g / ‖T g‖`` with ``T = |w| + η`` where ``adapted`` and 1 elsewhere; zero where ``T g`` is.

    Args:
        parameters: w.
        gradient: g, one tensor a parameter or ``None``.
        rho: ρ.
        adapted: One a parameter; empty: T = 1 throughout.
        eta: η.
    """
    with torch.no_grad():
        flags = adapted or [False] * len(parameters)
        scales = [p.detach().abs() + eta if flag else None for p, flag in zip(parameters, flags, strict=True)]
        once = tuple(g if g is None or t is None else t * g for g, t in zip(gradient, scales, strict=True))
        length = norm(once)
        twice = (g if g is None or t is None else t * g for g, t in zip(once, scales, strict=True))
        return scaled(tuple(twice), torch.where(length > 0, rho / length, 0.0))

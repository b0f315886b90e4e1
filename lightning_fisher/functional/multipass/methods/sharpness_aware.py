"""Sharpness-aware minimization: SAM, ASAM, m-SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lightning_fisher.arguments import require_non_negative, suggestion
from lightning_fisher.functional.losses.loss import LossFn
from lightning_fisher.functional.multipass.methods.step_gradient import StepGradient, multipass_gradient
from lightning_fisher.functional.multipass.passes import Evaluation, SubBatch

ADAPTIVE = (False, True, "weights")


@dataclass(frozen=True)
class Sharpness:
    """``L(B, w + e) − L(B, w)``, e the step up the slope; see `sharpness_aware_gradient`.

    Attributes:
        rho: ρ ≥ 0.
        adaptive: ``False``, ``True`` or ``"weights"``.
        eta: η ≥ 0; only with ``adaptive``.

    Raises:
        ValueError: If one doesn't fit.
    """

    rho: float
    adaptive: bool | Literal["weights"] = False
    eta: float = 0.0

    def __post_init__(self) -> None:
        adaptive = self.adaptive
        require_non_negative("rho", self.rho)
        require_non_negative("eta", self.eta)
        if not any(adaptive is allowed or (isinstance(adaptive, str) and adaptive == allowed) for allowed in ADAPTIVE):
            near = suggestion(adaptive, ["weights"])
            raise ValueError(f"Expected argument `adaptive` to be one of {ADAPTIVE}, but got {adaptive!r}.{near}")
        if self.eta and not adaptive:
            raise ValueError(f"Expected argument `eta` to be 0 without `adaptive`, but got {self.eta!r}.")

    def __call__(self, part: SubBatch) -> Evaluation:
        """The sharpness of a sub-batch."""
        adapted = [self.adaptive is True or (self.adaptive == "weights" and "weight" in name) for name in part.names]
        return part.at(part.ascent(self.rho, adapted, self.eta)) - part.here


def sharpness_aware_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    rho: float = 0.05,
    adaptive: bool | Literal["weights"] = False,
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

    Cost: 2 forward and backward passes of the batch; memory of three gradients and a copy of the weights.

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
    method = Sharpness(rho, adaptive, eta)
    return multipass_gradient(
        module, inputs, targets, method, weight=float(rho > 0), num_sub_batches=num_sub_batches, loss_fn=loss_fn
    )

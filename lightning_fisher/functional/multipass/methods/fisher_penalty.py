"""A penalty on the trace of the Fisher matrix, with labels drawn from the network's own output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lightning_fisher.arguments import require_choice, require_non_negative, require_positive
from lightning_fisher.functional.evaluation.batch import own_batch
from lightning_fisher.functional.evaluation.graph import refuse_single_derivatives
from lightning_fisher.functional.evaluation.samples import call_module, num_samples, ordinary
from lightning_fisher.functional.losses.loss import mean_loss
from lightning_fisher.functional.multipass.difference import DIFFERENCES
from lightning_fisher.functional.multipass.finite_difference import trainable_parameters
from lightning_fisher.functional.multipass.loop import Context, penalty_of_losses
from lightning_fisher.functional.multipass.methods.step_gradient import StepGradient, of_penalty
from lightning_fisher.functional.multipass.passes import Evaluation, Loss, SubBatch

METHODS = ("finite_difference", "double_backward")


@dataclass(frozen=True)
class SquaredNorm:
    """``‖G‖²`` of the gradient G of the loss, and ``2 H G`` by a finite difference; see `fisher_penalty_gradient`.

    Attributes:
        difference: ``"central"``, ``"forward"`` or ``"backward"``.
        length: Of the step, s > 0.

    Raises:
        ValueError: If one doesn't fit.
    """

    difference: Literal["central", "forward", "backward"] = "central"
    length: float = 0.01

    def __post_init__(self) -> None:
        require_choice("difference", self.difference, tuple(DIFFERENCES))
        require_positive("step", self.length)

    def __call__(self, part: SubBatch) -> Evaluation:
        """The squared norm of a sub-batch's gradient."""
        direction, norm = part.ascent(self.length), part.here.norm()
        places = DIFFERENCES[self.difference]
        upper, lower = (part.here if place == 0 else part.at(direction, place) for place in places)
        return Evaluation(norm**2, (2 * norm / self.length * (upper - lower)).gradient)


def fisher_penalty_gradient(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    weight: float = 0.1,
    method: str = "finite_difference",
    difference: str = "central",
    step: float = 0.01,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> StepGradient:
    r"""Gradient of ``L + c ‖G‖₂²``, ``G = 1/B Σ_i ∇ℓ(x_i, ŷ_i)`` with ``ŷ_i ~ p(·|x_i)`` (Jastrzebski et al. 2021).

    ℓ is the cross-entropy and the labels ŷ are drawn from the softmax output, once a call; the draw isn't
    differentiated. Since ``E[∇ℓ(x, ŷ)] = 0`` the mean of ``‖G‖²`` over draws is ``Tr F / B`` with the Fisher
    information matrix ``F = 1/B Σ_i E_ŷ[∇ℓ ∇ℓᵀ]``: B times ``penalty / c`` is an unbiased estimate of ``Tr F``, and
    at another batch size another weight c does the same. The penalty's gradient is a Hessian-vector product, ``2 c H̃
    G``, with the Hessian H̃ of the loss of the drawn labels:

    * ``"finite_difference"``: ``2‖G‖/s`` times the difference of the gradients of that loss over the step ``s G/‖G‖``;
      4 passes of the batch in all (``difference="central"``) or 3 (``"forward"``, ``"backward"``).
    * ``"double_backward"``: exact, by a backward pass through the backward pass: about 4 passes of the batch in all,
      and the memory of the graph of a gradient.

    In ReLU networks the finite difference counts the kinks that are crossed and the double backward doesn't. Weights,
    buffers, random state (which moves on by one draw, with ``labels`` by none) and precision as in
    `sharpness_aware_gradient`.

    Args:
        module: The network, in its current mode, returning logits ``[N, K]`` or ``[N, K, d1, …]``.
        inputs: N samples in dimension 0 of every tensor.
        targets: Class indices or probabilities; samples in dimension 0.
        weight: c ≥ 0; 0: the plain gradient, in one pass.
        method: ``"finite_difference"`` or ``"double_backward"``, see above.
        difference: ``"central"`` (points at ``± s/2``), ``"forward"`` or ``"backward"``.
        step: Length s > 0 of the step.
        labels: ŷ, ``[N]`` or ``[N, d1, …]``; ``None``: drawn.
        generator: Draws the labels, on the module's device; ``None``: torch's default generator seeds one.

    Returns:
        A `StepGradient` with ``penalty = c ‖G‖²``; ``nan``, and the plain gradient, where that isn't finite.

    Raises:
        ValueError: If an option or the outputs don't fit, or a parameter is narrower than float32, complex or sparse.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import fisher_penalty_gradient
        >>> net = torch.nn.Linear(3, 2)
        >>> result = fisher_penalty_gradient(net, torch.randn(8, 3), torch.randint(2, (8,)), weight=0.1)
        >>> for parameter, grad in zip(net.parameters(), result.gradient):
        ...     parameter.grad = grad
    """
    require_non_negative("weight", weight)
    require_choice("method", method, METHODS)
    by_difference = SquaredNorm(difference, step)  # type: ignore[arg-type]
    if labels is not None and num_samples(labels, "labels") != num_samples(inputs):
        raise ValueError(
            f"Expected argument `labels` to have {num_samples(inputs)} samples, but got {num_samples(labels)}."
        )
    trainable = trainable_parameters(module, num_samples(inputs), targets)
    if labels is None and generator is None and weight > 0:
        # Seeded here, where the random state isn't put back: otherwise every step would draw with the same numbers.
        seed = int(torch.randint(2**63 - 1, ()))
        generator = torch.Generator(trainable[0].device).manual_seed(seed)
    alone = Context(divergence=False, attributes=True)
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = own_batch(module, inputs, targets)
        penalty = None
        if weight > 0:
            sampled = _SampledLoss(module, inputs, ordinary(labels, None), generator)
            exact = method == "double_backward"
            penalty = penalty_of_losses(
                [(lambda: squared_norm(sampled, trainable)) if exact else sampled],
                trainable,
                method=(lambda part: part.here) if exact else by_difference,
                weights=[1.0],
                module=module,
                context=alone,
            )
        plain = penalty_of_losses(
            [lambda: mean_loss(call_module(module, inputs), targets, None)],
            trainable,
            method=by_difference,
            weights=[0.0],
            module=module,
            loss_shares=[1.0],
            context=alone,
        )
    found = plain if penalty is None else penalty
    return of_penalty(module, trainable, plain, found.gradient, weight, found.value)


class _SampledLoss:
    """The mean cross-entropy of labels drawn from the outputs of the first call; a function of nothing."""

    def __init__(
        self, module: nn.Module, inputs: Any, labels: Tensor | None, generator: torch.Generator | None
    ) -> None:
        self._module, self._inputs, self._labels, self._generator = module, inputs, labels, generator

    def __call__(self) -> Tensor:
        logits = call_module(self._module, self._inputs)
        if self._labels is None:
            self._labels = draw_labels(logits, self._generator)
        return sampled_loss(logits, self._labels)


def sampled_loss(logits: Any, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits, in float64.

    Args:
        logits: ``[N, K]`` or ``[N, K, d1, …]``.
        labels: ``[N]`` or ``[N, d1, …]``.

    Raises:
        ValueError: If the logits aren't of that shape.
    """
    return cross_entropy(_as_logits(logits).double(), labels)


def draw_labels(logits: Any, generator: torch.Generator | None) -> Tensor:
    """Labels ``[N]`` or ``[N, d1, …]`` drawn from the softmax of logits; not differentiated.

    Args:
        logits: ``[N, K]`` or ``[N, K, d1, …]``.
        generator: On the device of the logits.

    Raises:
        ValueError: If the logits aren't of that shape.
    """
    probabilities = _as_logits(logits).detach().double().softmax(1).movedim(1, -1)
    # What isn't finite is left out later; multinomial would stop at it.
    flat = torch.nan_to_num(probabilities, nan=1.0).reshape(-1, logits.shape[1])
    return torch.multinomial(flat, 1, generator=generator).view(probabilities.shape[:-1])


def _as_logits(logits: Any) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"Expected the module to return logits of shape [N, K] or [N, K, d1, …], but got {what}.")
    return logits


def squared_norm(loss: Loss, parameters: list[nn.Parameter]) -> Tensor:
    """``‖G‖²`` of the gradient G of a loss, which can be differentiated."""
    with sdpa_kernel(SDPBackend.MATH):  # the one kernel that can be differentiated twice
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
        refuse_single_derivatives(gradients, "the gradient of the penalty", 'choose method="finite_difference"')
        used = [g.double().square().sum() for g in gradients if g is not None]
        return torch.stack([s.to(used[0].device) for s in used]).sum()

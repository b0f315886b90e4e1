"""The penalty on the trace of the Fisher information matrix, with labels that the model draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lightning_fisher.arguments import require_choice, require_non_negative, require_positive
from lightning_fisher.functional.evaluation.samples import call_module, num_samples, ordinary
from lightning_fisher.functional.multipass.finite_difference import loss_of
from lightning_fisher.functional.multipass.loop import Gradient
from lightning_fisher.functional.multipass.methods.difference import DIFFERENCES
from lightning_fisher.functional.multipass.methods.sharpness_aware import ascent
from lightning_fisher.functional.multipass.perturbed import (
    Evaluation,
    Loss,
    PerturbedPasses,
    StepGradient,
    finite_or_plain,
    linear,
    norm,
    scaled,
    step_gradient,
)

METHODS = ("finite_difference", "double_backward")


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
    require_choice("difference", difference, tuple(DIFFERENCES))
    require_positive("step", step)
    if labels is not None and num_samples(labels, "labels") != num_samples(inputs):
        raise ValueError(
            f"Expected argument `labels` to have {num_samples(inputs)} samples, but got {num_samples(labels)}."
        )
    if labels is None and generator is None and weight > 0:
        # Seeded here, where the random state isn't put back: otherwise every step would draw with the same numbers.
        seed = int(torch.randint(2**63 - 1, ()))
        generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)

    def of_batch(passes: PerturbedPasses, x: Any, y: Any) -> tuple[Tensor, Tensor, Gradient]:
        here = passes.here(loss_of(module, x, y, None))
        if weight == 0:
            return here.value, here.value.new_zeros(()), here.gradient
        sampled = _SampledLoss(module, x, ordinary(labels, None), generator)
        if method == "double_backward":
            square, gradient = _double_backward(passes, sampled)
        else:
            square, gradient = _finite_difference(passes, sampled, difference, step)
        return finite_or_plain(here, weight * square, linear((1.0, here.gradient), (weight, gradient)))

    return step_gradient(module, inputs, targets, of_batch, what="the penalty")


class _SampledLoss:
    """The mean cross-entropy of labels drawn from the outputs of the first call; a function of nothing."""

    def __init__(
        self, module: nn.Module, inputs: Any, labels: Tensor | None, generator: torch.Generator | None
    ) -> None:
        self._module, self._inputs, self._labels, self._generator = module, inputs, labels, generator

    def __call__(self) -> Tensor:
        logits = call_module(self._module, self._inputs)
        if not isinstance(logits, Tensor) or logits.ndim < 2:
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"Expected the module to return logits of shape [N, K] or [N, K, d1, …], but got {what}.")
        if self._labels is None:
            self._labels = self._draw(logits.detach())
        return cross_entropy(logits.double(), self._labels)

    def _draw(self, logits: Tensor) -> Tensor:
        probabilities = logits.double().softmax(1).movedim(1, -1)
        # What isn't finite is left out later; multinomial would stop at it.
        flat = torch.nan_to_num(probabilities, nan=1.0).reshape(-1, logits.shape[1])
        return torch.multinomial(flat, 1, generator=self._generator).view(probabilities.shape[:-1])


def _finite_difference(
    passes: PerturbedPasses, loss: Loss, difference: str, step: float
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """``‖G‖²`` and ``2 H̃ G``."""
    center = passes.there(loss)
    length = norm(center.gradient)
    direction = ascent(passes.parameters, center.gradient, step)

    def at(place: float) -> Evaluation:
        return center if place == 0 else passes.there(loss, direction, place)

    upper, lower = (at(place) for place in DIFFERENCES[difference])
    change = linear((1.0, upper.gradient), (-1.0, lower.gradient))
    return length**2, scaled(change, 2 * length / step)


def _double_backward(passes: PerturbedPasses, loss: Loss) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """``‖G‖²`` and its gradient, by a backward pass through the backward pass."""

    def square() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the one kernel that can be differentiated twice
            gradients = torch.autograd.grad(loss(), passes.parameters, create_graph=True, allow_unused=True)
            used = [g.double().square().sum() for g in gradients if g is not None]
            return torch.stack([s.to(used[0].device) for s in used]).sum()

    found = passes.there(square)
    return found.value, found.gradient

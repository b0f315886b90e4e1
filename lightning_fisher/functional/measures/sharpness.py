"""Sharpness: how far the loss rises when the weights are perturbed, on average or at worst, in proportion to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice, require_integer, require_positive
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.graph import refuse_constant
from lightning_fisher.functional.evaluation.precision import require_full_precision
from lightning_fisher.functional.losses.loss import LossFn, mean_loss

Norm = Literal["l2", "linf"]
MOMENTUM = 0.75  # of APGD
IMPROVED = 0.75  # share of the steps between two checkpoints that have to raise the loss


def average_sharpness(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    rho: float = 0.4,
    norm: Norm = "l2",
    adaptive: bool = True,
    normalize_logits: bool = True,
    num_draws: int = 100,
    seed: int = 0,
    loss_fn: LossFn | None = None,
) -> Tensor:
    """Mean rise of the loss under random perturbations of the weights (Andriushchenko et al. 2023).

    ``E_z L(w + ρ |w| ∘ z) − L(w)``; ``z ~ N(0, I)`` for ``"l2"`` (not divided by ``√W``), uniform on ``[−1, 1]`` for
    ``"linf"``. Larger is worse. ``adaptive``, the factor ``|w|``, makes it unchanged by every rescaling that leaves the
    function unchanged; ``normalize_logits`` (``z ← (z − mean)/‖z − mean‖₂``) also by the logits' scale.

    Args:
        module: The network, float32 or float64; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        rho: ρ.
        norm: ``"l2"`` (Gaussian) or ``"linf"`` (uniform).
        adaptive: In proportion to the magnitude of each weight.
        normalize_logits: Center the logits ``[N, K]`` of every sample and scale them to length 1.
        num_draws: Draws of z.
        seed: Of the draws; the global random state is not touched.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.

    Returns:
        A float64 scalar. Costs ``num_draws + 1`` forward passes and a copy of the weights. At small ρ the
        sampling noise is large.

    Raises:
        ValueError: If an argument is out of range, or outputs don't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import average_sharpness
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> squared_error = lambda outputs, targets: (outputs - targets).square().mean()
        >>> _ = net.weight.data.fill_(2.0)
        >>> options = {"loss_fn": squared_error, "normalize_logits": False, "num_draws": 5000, "rho": 0.5}
        >>> round(float(average_sharpness(net, torch.ones(1, 1), 2 * torch.ones(1, 1), **options)), 1)  # (ρ w)²
        1.0
    """
    _check(rho, norm)
    require_integer("num_draws", num_draws, 1)
    generator = torch.Generator().manual_seed(seed)
    with _PerturbedLoss(module, inputs, targets, adaptive, normalize_logits, loss_fn) as loss:
        clean = loss(loss.zero).detach()
        rises = [loss([rho * _draw(w, norm, generator) for w in loss.zero]).detach() - clean for _ in range(num_draws)]
    return torch.stack(rises).mean()


def worst_sharpness(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    rho: float = 0.01,
    norm: Norm = "linf",
    adaptive: bool = True,
    normalize_logits: bool = True,
    num_steps: int = 20,
    loss_fn: LossFn | None = None,
) -> Tensor:
    """Largest rise of the loss under bounded weight perturbations (Kwon et al. 2021; Andriushchenko et al. 2023).

    ``max L(w + |w| ∘ u) − L(w)`` over ``‖u‖ ≤ ρ``, by projected gradient ascent with APGD's step sizes (Croce & Hein
    2020) *in the coordinates u*, where the constraint is a ball: the gradient is ``|w| ∘ ∇L``, the projection a
    rescaling. (The public code ascends in the coordinates of w; for ℓ2 it is then neither the maximum nor invariant.)
    Larger is worse. ``adaptive`` makes it unchanged by every rescaling that leaves the function unchanged;
    ``normalize_logits`` also by the logits' scale. Weights of exactly zero stay where they are.

    Args:
        module: The network, float32 or float64; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        rho: ρ.
        norm: ``"linf"`` or ``"l2"``, of the perturbation of all weights together.
        adaptive: In proportion to the magnitude of each weight.
        normalize_logits: Center the logits ``[N, K]`` of every sample and scale them to length 1.
        num_steps: Steps of the ascent.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.

    Returns:
        A float64 scalar, at least 0: a lower bound of the maximum. Costs ``num_steps + 1`` forward and backward passes
        and a copy of the weights.

    Raises:
        ValueError: If an argument is out of range, or outputs don't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import worst_sharpness
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> squared_error = lambda outputs, targets: (outputs - targets).square().mean()
        >>> _ = net.weight.data.fill_(2.0)
        >>> options = {"loss_fn": squared_error, "normalize_logits": False, "rho": 0.5}
        >>> round(float(worst_sharpness(net, torch.ones(1, 1), 1.9 * torch.ones(1, 1), **options)), 6)  # 1.1² − 0.1²
        1.2
    """
    _check(rho, norm)
    require_integer("num_steps", num_steps, 1)
    with _PerturbedLoss(module, inputs, targets, adaptive, normalize_logits, loss_fn) as loss:
        return _ascend(loss, rho, norm, num_steps)


class _PerturbedLoss:
    """``u ↦ L(w + |w| ∘ u)``, one tensor of u a parameter.

    On the network itself, whose weights are put back: a copy doesn't share its parameters with a loss that uses them.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Any,
        targets: Any,
        adaptive: bool,
        normalize_logits: bool,
        loss_fn: LossFn | None,
    ) -> None:
        self._module = module
        self._parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        if not self._parameters:
            raise ValueError("Expected argument `module` to have parameters that require gradients, but got none.")
        require_full_precision(self._parameters, "sharpness")
        self._weights = [parameter.detach().clone() for parameter in self._parameters]
        self._scales = [w.abs() if adaptive else torch.ones_like(w) for w in self._weights]
        self._normalize, self._loss_fn = normalize_logits, loss_fn
        self._evaluation = differentiable_evaluation(self._module)
        self._inputs, self._targets = inputs, targets
        self.zero = [torch.zeros_like(weight) for weight in self._weights]

    def __enter__(self) -> _PerturbedLoss:
        self._evaluation.__enter__()
        self._inputs, self._targets = differentiable((self._inputs, self._targets), self._module)
        return self

    def __exit__(self, *exception: Any) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, self._weights, strict=True):
                parameter.copy_(weight)
        self._evaluation.__exit__(*exception)

    def __call__(self, perturbation: list[Tensor]) -> Tensor:
        with torch.no_grad():
            for parameter, weight, scale, u in zip(
                self._parameters, self._weights, self._scales, perturbation, strict=True
            ):
                parameter.copy_(weight + scale * u)
        outputs = evaluate(self._module, self._inputs)
        if self._normalize:
            outputs = _normalized(outputs)
        return mean_loss(outputs, self._targets, self._loss_fn).double()

    def with_gradient(self, perturbation: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        loss = self(perturbation)
        if not loss.requires_grad:
            refuse_constant(loss, self._parameters)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        return loss.detach(), [scale * gradient for scale, gradient in zip(self._scales, gradients, strict=True)]


def _ascend(loss: _PerturbedLoss, rho: float, norm: Norm, num_steps: int) -> Tensor:
    """APGD: momentum, and step sizes that halve where the ascent stalls; goes on from the best point then."""
    move, project = _ball(rho, norm)
    position = previous = loss.zero
    clean, gradient = loss.with_gradient(position)
    best = (clean, position, gradient)
    value, step = clean, 2 * rho
    checkpoints = _checkpoints(num_steps)
    last, last_step, last_best, improvements = 0, step, clean, 0
    for k in range(num_steps):
        target = project([p + step * d for p, d in zip(position, move(gradient), strict=True)])
        if k > 0:
            target = project(
                [
                    p + MOMENTUM * (t - p) + (1 - MOMENTUM) * (p - q)
                    for p, t, q in zip(position, target, previous, strict=True)
                ]
            )
        previous, position = position, target
        before = value
        value, gradient = loss.with_gradient(position)
        improvements += int(bool(value > before))
        if bool(value > best[0]):
            best = (value, position, gradient)
        if k + 1 in checkpoints:
            few = improvements < IMPROVED * (k + 1 - last)
            stuck = last_step == step and bool(last_best == best[0])
            last, last_step, last_best, improvements = k + 1, step, best[0], 0
            if few or stuck:
                step /= 2
                value, position, gradient = best
                previous = position
    return (best[0] - clean).cpu()


def _checkpoints(num_steps: int) -> set[int]:
    """Croce & Hein's: ``p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)``, p₀ = 0, p₁ = 0.22."""
    places, result = [0.0, 0.22], set()
    while places[-1] <= 1:
        result.add(-int(-places[-1] * num_steps // 1))
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    return result


Tensors = Callable[[list[Tensor]], list[Tensor]]


def _ball(rho: float, norm: Norm) -> tuple[Tensors, Tensors]:
    """The direction of steepest ascent, and the projection, for a ball of radius ρ."""
    if norm == "linf":
        return lambda g: [t.sign() for t in g], lambda u: [t.clamp(-rho, rho) for t in u]

    def length(tensors: list[Tensor]) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(t.double()) for t in tensors]).norm()

    def direction(gradient: list[Tensor]) -> list[Tensor]:
        size = length(gradient)
        return [t / size.to(t.dtype) if bool(size > 0) else t for t in gradient]

    def project(u: list[Tensor]) -> list[Tensor]:
        size = length(u)
        return [t * (rho / size).to(t.dtype) for t in u] if bool(size > rho) else u

    return direction, project


def _normalized(logits: Any) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError("Expected the module to return logits of shape [N, K] when `normalize_logits` is true.")
    centered = logits.double()
    centered = centered - centered.mean(1, keepdim=True)
    return centered / torch.linalg.vector_norm(centered, dim=1, keepdim=True)


def _draw(like: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    if norm == "l2":
        noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    else:
        noise = 2 * torch.rand(like.shape, generator=generator, dtype=torch.float64) - 1
    return noise.to(like)


def _check(rho: float, norm: str) -> None:
    require_positive("rho", rho)
    require_choice("norm", norm, get_args(Norm))

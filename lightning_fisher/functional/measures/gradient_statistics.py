"""Statistics of per-sample gradients: how much they agree, and what they say about relative changes of the weights."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils._pytree import tree_flatten

from lightning_fisher.arguments import require_positive
from lightning_fisher.exceptions import (
    InteractionError,
    NonFiniteError,
    SecondDerivativeError,
    UndefinedMeasureError,
)
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.graph import (
    differentiated_pairs,
    pulled_back,
    refuse_constant,
    refuse_single_derivatives,
    second_derivatives,
)
from lightning_fisher.functional.evaluation.independence import (
    OneByOne,
    gradient_tolerance,
    random_weights,
    refuse_random_outputs,
    regroupings,
    require_same_outputs,
    weighted,
)
from lightning_fisher.functional.evaluation.precision import require_full_precision
from lightning_fisher.functional.evaluation.samples import num_samples, restore_sample_dimension, take
from lightning_fisher.functional.losses.loss import LossFn, losses_of, output_gradients
from lightning_fisher.functional.losses.loss_parameters import with_loss_inside


def participation_ratio(gram: Tensor) -> Tensor:
    """Participation ratio of the spectrum, ``(Σ λ)²/Σ λ²``: how many directions the gradients fill, 1 to N.

    Of the Gram matrix ξ, and so of the observed Fisher information. Not unchanged by rescaling layers or logits.
    Whether larger is better is open.

    Args:
        gram: ξ ``[N, N]`` of `gram_matrix`.

    Returns:
        A float64 scalar; ``nan`` where all gradients are zero. From ξ alone, no eigenvalues.

    Raises:
        ValueError: If ``gram`` is not a finite square matrix.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import participation_ratio
        >>> participation_ratio(torch.eye(3))
        tensor(3., dtype=torch.float64)
    """
    gram = _scaled(gram)
    return gram.trace().square() / gram.square().sum()


def gradient_noise_scale(gram: Tensor, *, unbiased: bool = False) -> Tensor:
    """Gradient noise scale, ``tr Σ̂/‖g‖²`` (McCandlish et al. 2018, Eq. 2.9).

    g is the mean gradient, ``Σ̂`` the sample covariance of the per-sample gradients (divisor N − 1). Larger is noisier.
    At a minimum g vanishes and the ratio diverges: it says how far training has come. Not unchanged by rescaling.

    Args:
        gram: ξ ``[N, N]``, N ≥ 2, of `gram_matrix`.
        unbiased: Divide by ``‖g‖² − tr Σ̂/N``, an unbiased estimate of the true gradient's square. It is *negative*
            where the gradient is within its noise; the value says no more than that then.

    Returns:
        A float64 scalar; ``inf`` where g is zero.

    Raises:
        ValueError: If ``gram`` is not a finite square matrix.
        UndefinedMeasureError: A `ValueError`, if N < 2.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import gradient_noise_scale
        >>> gradients = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # mean (1, 0), covariance diag(0, 2)
        >>> gradient_noise_scale(gradients @ gradients.T)
        tensor(2., dtype=torch.float64)
    """
    gram = _scaled(gram)
    count = len(gram)
    if count < 2:
        raise UndefinedMeasureError("gradient noise scale", "one sample: a variance needs two")
    squared_mean = gram.mean()
    variance = (gram.trace() - count * squared_mean) / (count - 1)
    return variance / (squared_mean - variance / count if unbiased else squared_mean)


def evidence_log_det(log_eigenvalues: Tensor, *, delta: float = 1.0) -> Tensor:
    """``ln|I + ξ/δ|``: what the weights' posterior costs in log-evidence, twice (MacKay 1992).

    With a Gaussian prior of precision δ and the Hessian of the summed loss replaced by ``JᵀJ``, the Laplace
    approximation of the log-evidence is ``−N L − δ/2 ‖w‖² − ½ ln|I + ξ/δ|``. Larger is worse. For δ → 0 it is
    ``ln|ξ| − N ln δ``, γ̂ up to a constant; directions with ``λ ≪ δ`` don't count. Not unchanged by rescaling; compare
    at equal N and δ.

    Args:
        log_eigenvalues: ``ln λ`` of ξ, ``[N]``, of `log_spectrum`.
        delta: δ; weight decay c on the mean loss is ``δ = N c``.

    Returns:
        A float64 scalar, in nats.

    Raises:
        ValueError: If ``delta`` is not positive.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import evidence_log_det
        >>> round(float(evidence_log_det(torch.tensor([0.0, 0.0]).double(), delta=0.5).exp()), 9)  # (1 + 1/0.5)²
        9.0
    """
    require_positive("delta", delta)
    return softplus(log_eigenvalues.double() - math.log(delta), threshold=40).sum()


def gradient_signal_to_noise(
    module: nn.Module, inputs: Any, targets: Any, *, eps: float = 0.0, loss_fn: LossFn | None = None
) -> Tensor:
    """Gradient signal-to-noise ratio, the mean over parameters of ``g_i²/(σ_i² + ε)`` (Liu et al. 2020).

    ``g_i`` and ``σ_i²`` are the mean and the variance (divisor N) of the gradient of parameter i over the samples.
    Larger is better, by its source during training. At ε = 0 it is unchanged by every rescaling that leaves the
    function unchanged; parameters whose gradient is zero for all samples are left out. Not unchanged by the logits'
    scale.

    Args:
        module: The network, float32 or float64; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        eps: ε, added to the variance (cockpit takes 1e-5, and counts parameters without a gradient as 0).
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.

    Returns:
        A float64 scalar; ``nan`` where no parameter has a gradient. Costs N forward and backward passes of one sample,
        and one of the batch, with which they are compared.

    Raises:
        ValueError: If there is nothing to differentiate, or an argument doesn't fit.
        InteractionError: A `ValueError`, if samples interact.
        NonFiniteError: A `ValueError`, if a loss or a gradient is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import gradient_signal_to_noise
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> loss = lambda outputs, targets: (outputs * targets).squeeze(1)  # gradients 1 and 3: mean 2, variance 1
        >>> targets = torch.tensor([[1.0], [3.0]])
        >>> round(float(gradient_signal_to_noise(net, torch.ones(2, 1), targets, loss_fn=loss)), 6)
        4.0
    """
    if not eps >= 0:
        raise ValueError(f"Expected argument `eps` to be a number of at least 0, but got {eps}.")
    parameters = _trainable(module)
    with differentiable_evaluation(module):
        inputs, targets = differentiable((inputs, targets), module)
        module, inputs, targets, loss_fn, _ = with_loss_inside(module, inputs, targets, loss_fn, None)
        outputs = evaluate(module, inputs)
        directions, log_norms, _ = output_gradients(outputs, targets, loss_fn)
        offset = log_norms.max() if eps == 0 and bool(log_norms.max() > -math.inf) else 0.0
        scales = (log_norms - offset).exp()  # a common factor cancels at ε = 0, and nothing underflows
        check = OneByOne(partial(evaluate, module), inputs, outputs, directions, scales, parameters)
        del outputs
        total = squares = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=scales.device)
        count = num_samples(inputs)
        for j in range(count):
            one = slice(j, j + 1)
            seen = evaluate(module, take(inputs, one))
            found = pulled_back(seen, take(directions, one), parameters)
            gradient = torch.cat([part.flatten() for part in found]) * scales[j]
            check.add(j, seen, gradient)
            total, squares = total + gradient, squares + gradient.square()
        check.finish()
        if not bool(squares.any()):
            refuse_constant(losses_of(evaluate(module, inputs), targets, loss_fn), parameters)
    if not bool(torch.isfinite(squares).all()):
        raise NonFiniteError("per-sample gradients")
    signal = (total / count).square()
    variance = (squares / count - signal).clamp_min(0.0)
    ratio = signal / (variance + eps)
    return (ratio if eps > 0 else ratio[squares > 0]).mean()


def fisher_rao_norm(module: nn.Module, inputs: Any, targets: Any, *, loss_fn: LossFn | None = None) -> Tensor:
    """Fisher–Rao norm, ``√(1/N Σ_j ⟨w, ∇_w ℓ_j⟩²) = √(wᵀ I_S w)`` (Liang et al. 2019).

    The observed Fisher information in the direction of the weights themselves: how the losses react to a common
    relative change of all weights. Larger is worse. Unchanged by every rescaling that leaves the function unchanged,
    not by the logits' scale. For a ReLU network without biases ``⟨w, ∇_w z⟩`` is its depth times z, so that it is a
    norm of the logits and their errors.

    Args:
        module: The network, float32 or float64; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices, class probabilities, or what ``loss_fn`` takes.
        loss_fn: ``(outputs, targets) → scalar mean`` or ``→ [N]``; ``None`` is the cross-entropy.

    Returns:
        A float64 scalar. Costs one Jacobian-vector product, a forward and two backward passes (with an operation that
        can't be differentiated twice, a forward and backward pass a sample), and a forward and backward pass in another
        grouping of the samples, which shows whether they interact.

    Raises:
        ValueError: If there is nothing to differentiate, or an argument doesn't fit.
        InteractionError: A `ValueError`, if samples interact.
        NonFiniteError: A `ValueError`, if a loss or a gradient is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import fisher_rao_norm
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(2.0)
        >>> loss = lambda outputs, targets: (outputs * targets).squeeze(1)  # gradients 3 and −3
        >>> round(float(fisher_rao_norm(net, torch.ones(2, 1), torch.tensor([[3.0], [-3.0]]), loss_fn=loss)), 6)
        6.0
    """
    parameters = _trainable(module)
    with differentiable_evaluation(module):
        inputs, targets = differentiable((inputs, targets), module)
        module, inputs, targets, loss_fn, _ = with_loss_inside(module, inputs, targets, loss_fn, None)
        outputs = evaluate(module, inputs)
        directions, log_norms, _ = output_gradients(outputs, targets, loss_fn)
        pairs = differentiated_pairs(outputs, directions)
        if not pairs or not bool(torch.isfinite(log_norms).any()):
            refuse_constant(losses_of(outputs, targets, loss_fn), parameters)
            return torch.zeros((), dtype=torch.float64)
        try:
            with second_derivatives("a Jacobian-vector product"):
                products = _products_with_weights(pairs, parameters)
        except SecondDerivativeError:
            products = _products_one_by_one(module, inputs, directions, parameters)
        _refuse_interaction(module, inputs, outputs, directions, parameters, products)
    values = products * log_norms.exp()
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError("loss gradients", torch.nonzero(~torch.isfinite(values)).flatten().tolist())
    return values.square().mean().sqrt()


def _products_with_weights(pairs: list[tuple[Tensor, Tensor]], parameters: list[nn.Parameter]) -> Tensor:
    """``⟨w, J_jᵀ d_j⟩``, ``[N]``, as ``J w = ∂/∂v ⟨w, Jᵀ v⟩``: two backward passes."""
    cotangents = [torch.zeros_like(output, requires_grad=True) for output, _ in pairs]
    outputs = [output for output, _ in pairs]
    gradients = torch.autograd.grad(outputs, parameters, cotangents, create_graph=True, allow_unused=True)
    refuse_single_derivatives(gradients, "a Jacobian-vector product")
    inner = [(g * p.detach()).sum() for g, p in zip(gradients, parameters, strict=True) if g is not None]
    changes = torch.autograd.grad(torch.stack(inner).sum(), cotangents, allow_unused=True, materialize_grads=True)
    terms = [
        (change.double() * direction.double()).reshape(len(change), -1).sum(1)
        for change, (_, direction) in zip(changes, pairs, strict=True)
    ]
    return torch.stack(terms).sum(0)


def _products_one_by_one(module: nn.Module, inputs: Any, directions: Any, parameters: list[nn.Parameter]) -> Tensor:
    """The same where an operation can be differentiated once only: a forward and backward pass a sample."""
    products = []
    for j in range(num_samples(inputs)):
        one = slice(j, j + 1)
        found = pulled_back(evaluate(module, take(inputs, one)), take(directions, one), parameters)
        products.append(sum((g * p.detach().double()).sum() for g, p in zip(found, parameters, strict=True)))
    return torch.stack(products)  # type: ignore[arg-type]


def _refuse_interaction(
    module: nn.Module, inputs: Any, outputs: Any, directions: Any, parameters: list[nn.Parameter], products: Tensor
) -> None:
    """Compare with ordinary backward passes of other groupings: ``⟨w, Σ_j c_j J_jᵀ d_j⟩ = Σ_j c_j ⟨w, J_jᵀ d_j⟩``.

    Args:
        module: The module.
        inputs: N samples.
        outputs: Theirs.
        directions: d, in the structure of the outputs.
        parameters: w.
        products: ``⟨w, J_jᵀ d_j⟩``, ``[N]``.

    Raises:
        InteractionError: If samples interact.
        ValueError: If the forward pass is not deterministic.
    """
    weights = random_weights(len(products), products.device)
    for part in regroupings(len(products), products.device):
        expected = take(outputs, part)
        seen = restore_sample_dimension(evaluate(module, take(inputs, part)), expected)
        of_loss = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_flatten(outputs)[0]]
        try:
            require_same_outputs(
                *(
                    [leaf for leaf, it in zip(tree_flatten(tree)[0], of_loss, strict=True) if it]
                    for tree in (seen, expected, outputs)
                )
            )
        except InteractionError:
            refuse_random_outputs(evaluate(module, inputs), outputs)
            raise
        gradients = pulled_back(seen, weighted(take(directions, part), weights[part]), parameters)
        pairs = list(zip(gradients, (p.detach().double() for p in parameters), strict=True))
        inner = torch.stack([(g * w).sum() for g, w in pairs])
        terms = weights[part] * products[part]
        rounding = 10 * torch.finfo(parameters[0].dtype).eps * sum(g.norm() * w.norm() for g, w in pairs)
        difference, size = (inner.sum() - terms.sum()).abs(), inner.abs().sum() + terms.abs().sum()
        if bool(difference > gradient_tolerance(parameters) * size + rounding):
            raise InteractionError(
                f"relative difference {float(difference / size):.1e} in another grouping", gradient=True
            )


def _scaled(gram: Tensor) -> Tensor:
    """Float64, divided by the largest entry of the diagonal, so that squares don't underflow."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
        raise ValueError(f"Expected argument `gram` to be a square matrix [N, N], but got shape {tuple(gram.shape)}.")
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("Expected argument `gram` to be finite, but it has infinite or undefined entries.")
    gram = gram.double()
    largest = gram.diagonal().max()
    return gram / torch.where(largest > 0, largest, 1.0)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("Expected argument `module` to have parameters that require gradients, but got none.")
    require_full_precision(parameters, "per-sample gradients")
    return parameters

"""Margins: how far the training samples are from the decision boundary, at the output, the input or a hidden layer."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lightning_fisher.exceptions import UndefinedMeasureError
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.independence import refuse_coupled_gradients, refuse_dependent_outputs
from lightning_fisher.functional.evaluation.samples import take
from lightning_fisher.functional.evaluation.state.modes import frozen
from lightning_fisher.functional.measures.logits import last_linear_layer, require_logits


class MarginSignature(NamedTuple):
    """Five numbers of a distribution of margins (Jiang et al. 2019).

    Attributes:
        lower_fence: The smallest margin within 1.5 interquartile ranges of the first quartile.
        first_quartile: 25 % of the margins are smaller.
        median: Half of them are.
        third_quartile: 75 % are.
        upper_fence: The largest margin within 1.5 interquartile ranges of the third quartile.
    """

    lower_fence: Tensor
    first_quartile: Tensor
    median: Tensor
    third_quartile: Tensor
    upper_fence: Tensor


def output_margins(module: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    """``z_y − max_{k≠y} z_k`` of every sample; negative where it is misclassified.

    Args:
        module: The network, returning logits ``[N, K]``, K ≥ 2; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices ``[N]``.

    Returns:
        ``[N]`` float64. Costs two forward passes: one in another grouping of the samples, which shows whether they
        interact.

    Raises:
        ValueError: If the outputs or the targets don't fit.
        InteractionError: A `ValueError`, if samples interact.
        NonFiniteError: A `ValueError`, if an output is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import output_margins
        >>> output_margins(torch.nn.Identity(), torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.5, 0.0]]), torch.tensor([0, 2]))
        tensor([ 1.0000, -0.5000], dtype=torch.float64)
    """
    with differentiable_evaluation(module), torch.no_grad():
        inputs, targets = differentiable((inputs, targets), module)
        logits = require_logits(evaluate(module, inputs), targets)
        refuse_dependent_outputs(partial(evaluate, module), inputs, logits)
        return _margins(logits.double(), targets)


def output_margin(module: nn.Module, inputs: Any, targets: Tensor, *, fraction: float = 0.1) -> Tensor:
    """A low quantile γ of the output margins: the k-th smallest, ``k = max(1, ⌊fraction · N⌋)``; larger is better.

    Dziugaite et al. (2020) take 10 % and its absolute value; here a network that misclassifies more than that has a
    negative margin. Unchanged by every rescaling that leaves the function unchanged, proportional to the logits' scale.

    Args:
        module: See `output_margins`.
        inputs: See `output_margins`.
        targets: See `output_margins`.
        fraction: Of the samples, between 0 and 1.

    Returns:
        A float64 scalar. Costs two forward passes.

    Raises:
        ValueError: As `output_margins`, or if ``fraction`` is out of range.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import output_margin
        >>> logits = torch.stack([torch.arange(20.0), torch.zeros(20)], 1)
        >>> output_margin(torch.nn.Identity(), logits, torch.zeros(20, dtype=torch.long))
        tensor(1., dtype=torch.float64)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"Expected argument `fraction` to be above 0 and at most 1, but got {fraction}.")
    margins = output_margins(module, inputs, targets)
    return margins.kthvalue(max(1, int(fraction * len(margins)))).values


def normalized_margins(
    module: nn.Module, inputs: Any, targets: Tensor, *, at: str = "input", spread: bool = False, eps: float = 0.0
) -> Tensor:
    """Distance to the decision boundary to first order, ``(z_y − z_j)/√(ε + ‖∇_a (z_y − z_j)‖₂²)`` (Jiang et al. 2019).

    j is the likeliest other class, ``a`` the input or the output of a hidden layer. Larger is better. At the input it
    is unchanged by every rescaling that leaves the function unchanged, and by the logits' scale. At a hidden layer, the
    layer's own scale is in it; ``spread=True`` divides by ``√tr Cov(a)``, the spread of the activations over the
    samples, which takes the layer's scale out again, not that of its single units.

    Args:
        module: The network, returning logits ``[N, K]``, K ≥ 2; left unchanged.
        inputs: N samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``).
        targets: Class indices ``[N]``.
        at: ``"input"``: all floating-point tensors in ``inputs``. ``"features"``: what the last linear layer receives.
            Else the name of a submodule, of which the output is taken.
        spread: Divide by the spread of the activations.
        eps: ε. Jiang et al. take 1e-6, which spoils the invariance; 0: a margin with zero gradient is infinite.

    Returns:
        ``[N]`` float64. Costs two forward and three backward passes, without weight gradients: all but one of each
        show whether samples interact.

    Raises:
        ValueError: If outputs, targets or the name don't fit.
        InteractionError: A `ValueError`, if samples interact.
        UndefinedMeasureError: A `ValueError`, if the activations are no floating-point tensor, or made several times,
            or don't vary with ``spread``.
        NonFiniteError: A `ValueError`, if an output is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import normalized_margins
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> normalized_margins(net, torch.tensor([[5.0, 0.0]]), torch.tensor([0]))  # 15 / 5
        tensor([3.], dtype=torch.float64)
    """
    if not eps >= 0:
        raise ValueError(f"Expected argument `eps` to be a number of at least 0, but got {eps}.")
    with differentiable_evaluation(module), frozen(module.parameters()):
        inputs, targets = differentiable((inputs, targets), module)
        logits, activations = _logits_and_activations(module, inputs, at)
        margins = _margins(require_logits(logits, targets), targets)
        if not margins.requires_grad:
            got = "one whose output has no gradient there (detached, or made under `torch.no_grad`?)"
            raise UndefinedMeasureError(f"margin at {at!r}", got)
        if wrong := [tuple(a.shape) for a in activations if a.ndim == 0 or len(a) != len(logits)]:
            raise UndefinedMeasureError(
                f"margin at {at!r}", f"shape {wrong[0]} there, without the samples in dimension 0"
            )
        refuse_dependent_outputs(partial(evaluate, module), inputs, logits)
        refuse_coupled_gradients(margins, activations)
        gradients = torch.autograd.grad(margins.sum(), activations, allow_unused=True, materialize_grads=True)
    squared = sum(gradient.double().flatten(1).square().sum(1) for gradient in gradients)
    assert isinstance(squared, Tensor)
    result = _quotient(margins.detach().double(), (eps + squared).sqrt())
    if spread:
        variance = sum(a.detach().double().flatten(1).var(0, correction=0).sum() for a in activations)
        assert isinstance(variance, Tensor)
        if variance == 0:
            raise UndefinedMeasureError(f"margin at {at!r} over the spread", "activations that don't vary there")
        result = result / variance.sqrt()
    return result


def median_margin(
    module: nn.Module, inputs: Any, targets: Tensor, *, at: str = "input", spread: bool = False
) -> Tensor:
    """Median over the samples of `normalized_margins`; larger is better.

    Args:
        module: See `normalized_margins`.
        inputs: See `normalized_margins`.
        targets: See `normalized_margins`.
        at: See `normalized_margins`.
        spread: See `normalized_margins`.

    Returns:
        A float64 scalar; nan between −∞ and ∞. Costs two forward and three backward passes, without weight gradients.

    Raises:
        ValueError: As `normalized_margins`.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import median_margin
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> median_margin(net, torch.tensor([[5.0, 0.0], [1.0, 0.0], [10.0, 0.0]]), torch.tensor([0, 0, 0]))
        tensor(3., dtype=torch.float64)
    """
    margins = normalized_margins(module, inputs, targets, at=at, spread=spread).sort().values
    lower, upper = margins[(len(margins) - 1) // 2], margins[len(margins) // 2]
    return torch.where(lower == upper, lower, (lower + upper) / 2)  # also where both are infinite


def margin_signature(margins: Tensor) -> MarginSignature:
    """Quartiles and fences of a distribution of margins, the features of Jiang et al. (2019).

    Args:
        margins: ``[N]``, of `output_margins` or `normalized_margins`.

    Returns:
        Five float64 scalars, quantiles interpolated linearly.

    Raises:
        ValueError: If ``margins`` is not ``[N]`` with N ≥ 1.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import margin_signature
        >>> [float(number) for number in margin_signature(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0]))]
        [0.0, 1.0, 2.0, 3.0, 3.0]
    """
    if margins.ndim != 1 or len(margins) == 0:
        raise ValueError(f"Expected argument `margins` to have shape [N], N ≥ 1, but got {tuple(margins.shape)}.")
    margins = margins.double()
    first, median, third = torch.quantile(margins, margins.new_tensor([0.25, 0.5, 0.75]))
    reach = 1.5 * (third - first)
    inside = margins[(margins >= first - reach) & (margins <= third + reach)]
    return MarginSignature(inside.min(), first, median, third, inside.max())


def _margins(logits: Tensor, targets: Tensor) -> Tensor:
    true = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, targets.unsqueeze(1), True)
    return logits[true] - logits.masked_fill(true, -torch.inf).amax(1)


def _quotient(margins: Tensor, norms: Tensor) -> Tensor:
    """``margins / norms``; 0 where both are."""
    return torch.where(margins == 0, 0.0, margins / norms)


def _logits_and_activations(module: nn.Module, inputs: Any, at: str) -> tuple[Any, list[Tensor]]:
    if at == "input":
        leaves = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not leaves:
            raise UndefinedMeasureError("margin at the input", "inputs without a floating-point tensor")
        for leaf in leaves:
            leaf.requires_grad_()
        copies = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
        return evaluate(module, copies), leaves  # the first layer may change its input in place
    kept: list[Tensor] = []

    def keep(activation: Any) -> Tensor:
        if kept or not isinstance(activation, Tensor) or not activation.is_floating_point():
            what = "is called more than once" if kept else "has no floating-point tensor there"
            raise UndefinedMeasureError(f"margin at {at!r}", f"one in which it {what}")
        kept.append(activation.detach().requires_grad_())
        return kept[0].clone()  # the layers behind may change it in place

    with ExitStack() as stack:
        if at == "features":
            layer = last_linear_layer(module, take(inputs, slice(0, 1)), "margin at the features")
            handle = layer.register_forward_pre_hook(lambda layer, received: (keep(received[0]), *received[1:]))
        else:
            named = dict(module.named_modules())
            if at not in named:
                raise ValueError(
                    f'Expected argument `at` to be "input", "features" or the name of a submodule, but got {at!r}.'
                )
            handle = named[at].register_forward_hook(lambda layer, received, output: keep(output))
        stack.callback(handle.remove)
        logits = evaluate(module, inputs)
    if not kept:
        raise UndefinedMeasureError(f"margin at {at!r}", "one in which it is not called")
    return logits, kept

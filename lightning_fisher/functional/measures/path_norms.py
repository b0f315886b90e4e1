"""The path norm of a ReLU network: the sum over all paths of the squared products of their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from lightning_fisher.exceptions import UndefinedMeasureError
from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.module_copy import require_separate_copy, requires_float64
from lightning_fisher.functional.evaluation.samples import take
from lightning_fisher.functional.measures.folding import fold_batch_norm

TOLERANCE = 1e-6


def path_norm(module: nn.Module, inputs: Any, margin: Tensor | float | None = None) -> Tensor:
    """Path norm, ``Σ_k f_{w²}(1)_k``: the outputs of the network with all weights squared, on an input of ones.

    For a ReLU network ``Σ over paths Π w²`` (Neyshabur et al. 2015; Jiang et al. 2020), paths from biases included;
    batch-norm is folded in, or squared in its place (see `fold_batch_norm`). Max-pooling takes the largest of the sums
    that meet. Unchanged by every rescaling that leaves a ReLU network's function unchanged: of layers, of single units,
    of weights in front of batch-norm; over the margin also by the logits' scale. Larger is worse.

    Args:
        module: A network of linear and convolution layers, batch-norm, ReLU and pooling; not changed.
        inputs: Samples; only their shape counts, and the first few for `fold_batch_norm`.
        margin: γ of `output_margin`: ``path norm / γ²``, ``inf`` where γ ≤ 0. ``None``: the path norm alone.

    Returns:
        A float64 scalar. Costs what `fold_batch_norm` costs and three forward passes of one sample.

    Raises:
        UndefinedMeasureError: If the network with its squared weights and without biases is not positively homogeneous:
            other normalization, smooth activations, attention; or if the inputs are no floating-point numbers.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import path_norm
        >>> first, last = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        >>> _ = first.weight.data.copy_(torch.tensor([[1.0, -2.0]])), last.weight.data.fill_(3.0)
        >>> net = torch.nn.Sequential(first, torch.nn.ReLU(), last)
        >>> path_norm(net, torch.zeros(1, 2))  # (1·3)² + (2·3)²
        tensor(45., dtype=torch.float64)
    """
    require_separate_copy(module, inputs)
    squared = fold_batch_norm(module, inputs)
    one = take(inputs, slice(0, 1))
    with requires_float64(), differentiable_evaluation(squared), torch.no_grad():
        for parameter in squared.parameters():
            parameter.square_()
        one = differentiable(one, squared)
        value = _outputs(squared, one, 1.0).sum()
        _require_homogeneous(squared, one)
    if margin is None:
        return value
    gamma = float(margin)
    return value / gamma**2 if gamma > 0 else torch.full_like(value, torch.inf)


def _outputs(module: nn.Module, like: Any, number: float) -> Tensor:
    """Outputs at an input of equal numbers."""

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and not leaf.is_floating_point():
            raise UndefinedMeasureError("path norm", f"inputs of {leaf.dtype}, not floating-point numbers")
        return torch.full_like(leaf, number) if isinstance(leaf, Tensor) else leaf

    outputs = evaluate(module, tree_map(fill, like))
    if not isinstance(outputs, Tensor):
        raise UndefinedMeasureError("path norm", f"a network that returns {type(outputs).__name__}, not a tensor")
    return outputs


def _require_homogeneous(squared: nn.Module, like: Any) -> None:
    for layer in squared.modules():
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            bias.zero_()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.running_mean.zero_()
    once, twice = _outputs(squared, like, 1.0), _outputs(squared, like, 2.0)
    if not bool(((twice - 2 * once).abs() <= TOLERANCE * once.abs()).all()):
        raise UndefinedMeasureError(
            "path norm", "a network that is not piecewise linear (other normalization, smooth activations or attention)"
        )

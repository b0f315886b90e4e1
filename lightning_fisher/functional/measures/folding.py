"""Batch-norm folded into the layer in front of it: the same function with the weights that act.

With running statistics a batch-norm layer is a multiplication and an addition. The norm of a weight in front of it
means nothing by itself: scaled by c, with the statistics following, the network computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.evaluation.differentiable import differentiable, differentiable_evaluation, evaluate
from lightning_fisher.functional.evaluation.module_copy import copied, require_separate_copy, requires_float64
from lightning_fisher.functional.evaluation.samples import num_samples, take

FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SAMPLES = 4  # on which a fold is verified
SAME = 1e-9  # relative difference of outputs that rounding in float64 explains
REMOVERS = {"WeightNorm": remove_weight_norm, "SpectralNorm": remove_spectral_norm}


def fold_batch_norm(module: nn.Module, inputs: Any) -> nn.Module:
    """A float64 copy in evaluation mode that computes the same, batch-norm folded into the layer in front of it.

    ``γ (W x + b − μ)/√(σ² + ε) + β = W′ x + b′``: where the output of a linear or convolution layer goes straight and
    only into a batch-norm layer, the layer gets ``W′`` and ``b′`` and the batch-norm layer becomes ``nn.Identity``. A
    batch-norm layer elsewhere (in front of the activation and the convolution, as in pre-activation networks) keeps
    its place as a multiplication and an addition: weight ``γ/√(σ² + ε)``, bias ``β − μ γ/√(σ² + ε)``, no statistics.
    Which layer feeds which is observed in a forward pass, and every fold is verified on up to 4 samples and undone
    where the outputs differ, so that layers that are used twice or branch off are safe. Weights under a
    parametrization or ``weight_norm`` become plain parameters.

    Costs one forward pass of up to 4 samples in float64 for every batch-norm layer, and a copy of the network.

    Args:
        module: Any module; not changed.
        inputs: Samples: a tensor, a tuple (``module(*inputs)``) or a dict (``module(**inputs)``); only the first few
            are used.

    Returns:
        The copy.

    Raises:
        ValueError: If a batch-norm layer has no running statistics.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import fold_batch_norm
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
        >>> fold_batch_norm(net, torch.randn(2, 3))
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
          (1): Identity()
          (2): ReLU()
        )
    """
    folded = copied(module).double().eval()
    _make_weights_plain(folded)
    norms = {name: layer for name, layer in folded.named_modules() if isinstance(layer, _BatchNorm)}
    if not norms:
        return folded
    require_separate_copy(module, inputs)
    few = take(inputs, slice(0, min(SAMPLES, num_samples(inputs))))
    with requires_float64(), differentiable_evaluation(folded), torch.no_grad():
        few = differentiable(few, folded)
        feeders = _feeders(folded, norms, few)
        expected = evaluate(folded, few)
        kept = [norm for name, norm in norms.items() if not _fold(folded, feeders.get(name), name, norm, few, expected)]
    for norm in kept:  # out here: the evaluation puts buffers back
        _set_affine(norm, *_scale_and_shift(norm))
    return folded


def weight_matrices(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """The weight matrices of the layers, batch-norm folded in, ``[out, rest]`` float64, by parameter name.

    Every parameter with two or more dimensions, reshaped to one row an output; a batch-norm layer that nothing absorbs
    is a diagonal matrix, given by its diagonal ``[C]``. Biases are none of them.

    Args:
        module: Any module; not changed.
        inputs: A few samples, see `fold_batch_norm`.

    Returns:
        Name → matrix, in the order of ``named_parameters()``.

    Raises:
        ValueError: As `fold_batch_norm`.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import weight_matrices
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> {name: tuple(matrix.shape) for name, matrix in weight_matrices(net, torch.randn(1, 3, 8, 8)).items()}
        {'0.weight': (4, 27)}
    """
    return matrices_of_folded(fold_batch_norm(module, inputs))


def matrices_of_folded(folded: nn.Module) -> dict[str, Tensor]:
    """`weight_matrices` of a network that `fold_batch_norm` returned."""
    diagonals = {f"{name}.weight" for name, layer in folded.named_modules() if isinstance(layer, _BatchNorm)}
    matrices = {}
    for name, parameter in folded.named_parameters():
        if name in diagonals:
            matrices[name] = parameter.detach()
        elif parameter.ndim >= 2:
            matrices[name] = parameter.detach().flatten(1)
    return matrices


def _make_weights_plain(module: nn.Module) -> None:
    for layer in list(module.modules()):
        for hook in list(layer._forward_pre_hooks.values()):
            if (remove := REMOVERS.get(type(hook).__name__)) is not None:
                remove(layer, getattr(hook, "name", "weight"))
        if parametrize.is_parametrized(layer):
            # `remove_parametrizations` would take the weight from the class, which the copy shares with its original.
            values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer._modules["parametrizations"]
            for name, value in values.items():
                layer.register_parameter(name, nn.Parameter(value))


def _feeders(module: nn.Module, norms: dict[str, _BatchNorm], inputs: Any) -> dict[str, nn.Module]:
    """The layer whose output tensor a batch-norm layer receives, by the name of the latter; both called once."""
    calls: dict[nn.Module, list[Any]] = {}

    def observe(layer: nn.Module, received: Any, output: Any) -> None:
        calls.setdefault(layer, []).append((received, output))

    layers = [layer for layer in module.modules() if isinstance(layer, (*FOLDABLE, _BatchNorm))]
    handles = [layer.register_forward_hook(observe) for layer in layers]
    try:
        evaluate(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    outputs = {id(found[0][1]): layer for layer, found in calls.items() if len(found) == 1}
    feeders: dict[str, nn.Module] = {}
    for name, norm in norms.items():
        found = calls.get(norm, [])
        if len(found) == 1 and len(received := tree_flatten(found[0][0])[0]) == 1:
            layer = outputs.get(id(received[0]))
            if isinstance(layer, FOLDABLE):
                feeders[name] = layer
    return feeders


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("Expected batch-norm layers with running statistics, but got one without.")
    scale = torch.rsqrt(norm.running_var + norm.eps) * (1.0 if norm.weight is None else norm.weight.detach())
    shift = (0.0 if norm.bias is None else norm.bias.detach()) - norm.running_mean * scale
    return scale, shift


def _set_affine(norm: _BatchNorm, scale: Tensor, shift: Tensor) -> None:
    norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
    norm.running_mean = torch.zeros_like(scale)
    norm.running_var = torch.full_like(scale, 1.0 - norm.eps)


def _fold(module: nn.Module, layer: nn.Module | None, name: str, norm: _BatchNorm, inputs: Any, expected: Any) -> bool:
    """Fold ``norm`` into ``layer``; undone, and false, where there is none or the outputs are not what they were."""
    if layer is None:
        return False
    scale, shift = _scale_and_shift(norm)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    scaled = weight.detach() * scale.view(-1, *[1] * (weight.ndim - 1))
    moved = shift if bias is None else shift + scale * bias.detach()  # type: ignore[operator]
    layer.weight, layer.bias = nn.Parameter(scaled), nn.Parameter(moved)
    module.set_submodule(name, nn.Identity().eval())
    if _same(module, inputs, expected):
        return True
    layer.weight, layer.bias = weight, bias
    module.set_submodule(name, norm)
    return False


def _same(module: nn.Module, inputs: Any, expected: Any) -> bool:
    try:
        outputs = evaluate(module, inputs)
    except Exception:  # a forward pass that reads the batch-norm layer's attributes, say
        return False
    pairs = zip(tree_flatten(outputs)[0], tree_flatten(expected)[0], strict=True)
    return all(
        bool((a - b).abs().max() <= SAME * b.abs().max())
        for a, b in pairs
        if isinstance(a, Tensor) and a.is_floating_point()
    )

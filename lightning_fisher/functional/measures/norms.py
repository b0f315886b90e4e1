"""Norms of the weights, their products over layers, and how far training moved them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.exceptions import NonFiniteError, UndefinedMeasureError
from lightning_fisher.functional.evaluation.module_copy import copied
from lightning_fisher.functional.measures.folding import weight_matrices


def parameter_norm(module: nn.Module) -> Tensor:
    """Norm of all parameters, ``‖w‖₂``; larger is worse, if anything.

    The trivial baseline: it grows with the length of training. Not unchanged by any rescaling.

    Args:
        module: Any module.

    Returns:
        A float64 scalar. Costs no pass.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import parameter_norm
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> parameter_norm(net)
        tensor(5., dtype=torch.float64)
    """
    return _total_norm(parameter.detach() for parameter in module.parameters())


def folded_norm(module: nn.Module, inputs: Any) -> Tensor:
    """Norm of the weight matrices, batch-norm folded in, ``√Σ_l ‖W_l‖_F²`` (Dziugaite et al. 2020: ``L2``).

    Unchanged by rescaling weights in front of batch-norm, not by rescaling ReLU layers; larger is worse.

    Args:
        module: Any module; not changed.
        inputs: A few samples, see `fold_batch_norm`.

    Returns:
        A float64 scalar. Costs what `weight_matrices` costs.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import folded_norm
        >>> net = torch.nn.Linear(2, 1)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> folded_norm(net, torch.zeros(1, 2))
        tensor(5., dtype=torch.float64)
    """
    return _total_norm(weight_matrices(module, inputs).values())


def distance_from_initialization(module: nn.Module, inputs: Any, initial: nn.Module | Mapping[str, Tensor]) -> Tensor:
    """How far training moved the weight matrices, ``√Σ_l ‖W_l − W_l⁰‖_F²`` (Dziugaite et al. 2020: ``L2_DIST``).

    Batch-norm is folded into both, each with its own statistics. Unchanged by rescaling weights in front of
    batch-norm, not by rescaling ReLU layers (the initial weights stay what they are); larger is worse.

    Args:
        module: The trained network; not changed.
        inputs: A few samples, see `fold_batch_norm`.
        initial: The network before training, or its ``state_dict()``.

    Returns:
        A float64 scalar. Costs what `weight_matrices` costs, twice.

    Raises:
        ValueError: If ``initial`` has other weights.

    Example:
        >>> import copy, torch
        >>> from lightning_fisher.functional.measures import distance_from_initialization
        >>> net = torch.nn.Linear(2, 1)
        >>> initial = copy.deepcopy(net.state_dict())
        >>> _ = net.weight.data.add_(torch.tensor([[3.0, 4.0]]))
        >>> round(float(distance_from_initialization(net, torch.zeros(1, 2), initial)), 4)
        5.0
    """
    matrices = weight_matrices(module, inputs)
    before = weight_matrices(_with_weights(module, initial), inputs)
    shapes, shapes_before = ({k: tuple(v.shape) for k, v in m.items()} for m in (matrices, before))
    if shapes != shapes_before:
        raise ValueError(
            "Expected argument `initial` to have the weights of `module`, "
            f"but they differ: {sorted(shapes.items() ^ shapes_before.items())}."
        )
    return _total_norm(matrices[name] - before[name] for name in matrices)


def log_spectral_product(matrices: Mapping[str, Tensor], margin: Tensor | float | None = None) -> Tensor:
    """Product of spectral norms over layers, ``Σ_l ln‖W_l‖_σ²``; over the margin ``− 2 ln γ`` (Bartlett et al. 2017).

    A bound of the network's Lipschitz constant. Unchanged by rescaling whole layers, not by rescaling single
    units; over the margin also by the logits' scale. Larger should be worse; in large studies it ranks networks the
    *wrong* way (Jiang et al. 2020): a baseline. A convolution counts as its kernel, reshaped to ``[out, rest]``, not
    as the operator on images.

    Args:
        matrices: Of `weight_matrices`.
        margin: γ of `output_margin`, or ``None``: the product alone.

    Returns:
        A float64 scalar; ``inf`` where γ ≤ 0. Costs the largest eigenvalue of one matrix a layer.

    Raises:
        ValueError: If there is no matrix.
        UndefinedMeasureError: A `ValueError`, if a matrix is zero.
        NonFiniteError: A `ValueError`, if a weight is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import log_spectral_product
        >>> matrices = {"first": torch.diag(torch.tensor([2.0, 1.0])), "second": torch.diag(torch.tensor([0.5, 0.1]))}
        >>> float(log_spectral_product(matrices))
        0.0
    """
    return _log_product(matrices, _spectral_norm, margin)


def log_frobenius_product(matrices: Mapping[str, Tensor], margin: Tensor | float | None = None) -> Tensor:
    """Product of Frobenius norms over layers, ``Σ_l ln‖W_l‖_F²``; over the margin ``− 2 ln γ`` (Neyshabur et al. 2015).

    Unchanged by rescaling whole layers, not by rescaling single units; over the margin also by the logits' scale.
    Larger should be worse; a baseline, as `log_spectral_product` is.

    Args:
        matrices: Of `weight_matrices`.
        margin: γ of `output_margin`, or ``None``: the product alone.

    Returns:
        A float64 scalar; ``inf`` where γ ≤ 0. Costs no pass.

    Raises:
        ValueError: If there is no matrix.
        UndefinedMeasureError: A `ValueError`, if a matrix is zero.
        NonFiniteError: A `ValueError`, if a weight is infinite or nan.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.measures import log_frobenius_product
        >>> round(float(log_frobenius_product({"only": torch.tensor([[3.0, 4.0]])}, margin=5.0)), 9)
        0.0
    """
    return _log_product(matrices, torch.linalg.vector_norm, margin)


def over_margin(log_value: Tensor, margin: Tensor | float) -> Tensor:
    """``ln(v / γ²)``; ``inf`` where γ ≤ 0: a network that does not separate its samples is no better for it."""
    gamma = float(margin)
    return log_value - 2 * math.log(gamma) if gamma > 0 else torch.full_like(log_value, math.inf)


def _log_product(matrices: Mapping[str, Tensor], norm: Any, margin: Tensor | float | None) -> Tensor:
    if not matrices:
        raise ValueError("Expected argument `matrices` to hold at least one weight matrix, but got none.")
    if not all(bool(torch.isfinite(matrix).all()) for matrix in matrices.values()):
        raise NonFiniteError("weights")
    norms = torch.stack([norm(matrix.double()).cpu() for matrix in matrices.values()])
    if zero := [name for name, value in zip(matrices, norms.tolist(), strict=True) if value == 0]:
        raise UndefinedMeasureError("product of norms", f"one whose weights {zero} are zero")
    total = 2 * norms.log().sum()
    return total if margin is None else over_margin(total, margin)


def _spectral_norm(matrix: Tensor) -> Tensor:
    if matrix.ndim == 1:
        return matrix.abs().max()
    # The largest eigenvalue of the smaller product is as exact as the singular value, and far cheaper.
    small = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(small @ small.T)[-1].clamp_min(0.0).sqrt()


def _total_norm(tensors: Iterable[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor.double()).cpu() for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)


def _with_weights(module: nn.Module, initial: nn.Module | Mapping[str, Tensor]) -> nn.Module:
    if isinstance(initial, nn.Module):
        return initial
    twin = copied(module)
    try:
        twin.load_state_dict(initial)
    except RuntimeError as error:
        raise ValueError(
            f"Expected argument `initial` to have the weights of `module`, but got another state dict: {error}"
        ) from None
    return twin

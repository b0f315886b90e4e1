"""γ̂ layer by layer: the Gram matrices of layers add up to ξ, so that they cost nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.functional.fisher.decided import decided_gram, total_of
from lightning_fisher.functional.fisher.log_determinant import FisherLogDet, log_det_of
from lightning_fisher.functional.fisher.spectrum import log_spectrum
from lightning_fisher.functional.gram.matrix import BatchNorm, ScaledGram, scaled_gram
from lightning_fisher.functional.gram.rules.parameter_scale import Scale
from lightning_fisher.functional.losses.loss import LossFn

Naming = Callable[[str], str]


class LayerFisher(NamedTuple):
    """What one layer, or group of parameters, contributes to ξ.

    Attributes:
        log_trace: ``ln tr ξ_l``; ``−inf`` where no gradient reaches the layer.
        log_det: Sum of the logarithms of the non-zero eigenvalues of ξ_l; ``nan`` at rank 0. Values of unequal rank
            don't compare.
        rank: Rank of ξ_l, at most N and the number of parameters.
        share: ``tr(ξ⁻¹ ξ_l) / rank ξ``: by how much γ̂ changes with the layer's part, ``∂ ln|ξ| / ∂ ln a`` of
            ``ξ + (a − 1) ξ_l`` at a = 1. The shares of all layers sum to one.
        log_eigenvalues: ``[N]``, logarithms of the eigenvalues of ξ_l, descending; ``−inf`` beyond the rank.
        num_parameters: Trainable parameters of the layer.
    """

    log_trace: Tensor
    log_det: Tensor
    rank: Tensor
    share: Tensor
    log_eigenvalues: Tensor
    num_parameters: int


class LayeredLogDet(NamedTuple):
    """``ln|ξ|`` and what the layers contribute.

    Attributes:
        total: Of all parameters together, as `fisher_log_det` gives it.
        layers: By name, in the order of ``named_parameters()``.
    """

    total: FisherLogDet
    layers: dict[str, LayerFisher]


def layer_of(name: str) -> str:
    """The layer of a parameter: its name without the last part, ``layer1.0.conv1`` for ``layer1.0.conv1.weight``."""
    return name.rpartition(".")[0] or name


def layer_gram_matrices(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    group: Naming = layer_of,
    loss_fn: LossFn | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    logit_norm: float | None = None,
    residual: bool = True,
    scale: Scale = "none",
) -> dict[str, Tensor]:
    """Gram matrices of the per-sample gradients of every layer, ``ξ = Σ_l ξ_l``.

    Costs what `gram_matrix` costs, and N² float64 numbers a layer.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`.
        targets: See `gram_matrix`.
        group: Name of a parameter → name of its layer or group; parameters of equal names add up. A parameter that
            several layers share counts where ``named_parameters()`` finds it first.
        loss_fn: See `gram_matrix`.
        batch_norm: See `gram_matrix`; ``"batch"`` repeats the passes for every layer.
        chunk_size: See `gram_matrix`.
        logit_norm: See `gram_matrix`.
        residual: See `gram_matrix`.
        scale: See `gram_matrix`.

    Returns:
        Name → ``[N, N]``, float64, symmetric.

    Raises:
        ValueError: As `gram_matrix`.
        NonFiniteError: As `gram_matrix`.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import gram_matrix, layer_gram_matrices
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> inputs, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
        >>> grams = layer_gram_matrices(net, inputs, targets)
        >>> list(grams), torch.allclose(sum(grams.values()), gram_matrix(net, inputs, targets))
        (['0', '2'], True)
    """
    names, numbers, _ = _groups(module, group)
    scaled = scaled_gram(
        module,
        inputs,
        targets,
        loss_fn=loss_fn,
        batch_norm=batch_norm,
        chunk_size=chunk_size,
        logit_norm=logit_norm,
        residual=residual,
        scale=scale,
        groups=numbers,
    )
    scales = scaled.log_scales.exp()
    return dict(zip(names, scaled.gram * torch.outer(scales, scales), strict=True))


def layer_log_dets(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    group: Naming = layer_of,
    loss_fn: LossFn | None = None,
    batch_norm: BatchNorm = "eval",
    chunk_size: int | None = None,
    logit_norm: float | None = None,
    residual: bool = True,
    scale: Scale = "none",
    tol: float | None = None,
) -> LayeredLogDet:
    """``ln|ξ|`` with trace, rank, log-determinant and spectrum of every layer's part, stable at any loss.

    Costs what `fisher_log_det` costs, and an eigenvalue problem of size N a layer. Singular matrices count by their
    non-zero eigenvalues, the rank says so: most layers have fewer parameters than would be needed.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`.
        targets: See `gram_matrix`.
        group: See `layer_gram_matrices`.
        loss_fn: See `gram_matrix`.
        batch_norm: See `layer_gram_matrices`.
        chunk_size: See `gram_matrix`.
        logit_norm: See `gram_matrix`.
        residual: See `gram_matrix`.
        scale: See `gram_matrix`.
        tol: See `log_det`.

    Returns:
        A `LayeredLogDet`.

    Raises:
        ValueError: As `gram_matrix`.
        NonFiniteError: As `gram_matrix`.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import layer_log_dets
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> found = layer_log_dets(net, torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0]))
        >>> {name: layer.num_parameters for name, layer in found.layers.items()}
        {'0': 40, '2': 27}
        >>> round(float(sum(layer.share for layer in found.layers.values())), 6)
        1.0
    """
    names, numbers, sizes = _groups(module, group)
    how: dict[str, Any] = {
        "loss_fn": loss_fn,
        "batch_norm": batch_norm,
        "chunk_size": chunk_size,
        "logit_norm": logit_norm,
        "residual": residual,
        "scale": scale,
        "groups": numbers,
    }
    scaled = decided_gram(module, inputs, targets, how, tol)
    total = log_det_of(total_of(scaled), rank_policy="silent", tol=tol)
    shares = _shares(scaled, total)
    layers = {}
    for name, gram, share, size in zip(names, scaled.gram, shares, sizes, strict=True):
        own = log_det_of(scaled._replace(gram=gram), rank_policy="silent", tol=tol)
        logs = log_spectrum(own.gram, own.log_norms, rank=int(own.rank))
        log_det = torch.where(torch.isneginf(logs), 0.0, logs).sum() if int(own.rank) else own.log_det
        layers[name] = LayerFisher(torch.logsumexp(2 * own.log_norms, 0), log_det, own.rank, share, logs, size)
    return LayeredLogDet(total, layers)


def _groups(module: nn.Module, group: Naming) -> tuple[list[str], tuple[int, ...], list[int]]:
    """Names of the groups, the number of each trainable parameter's, and how many parameters they have."""
    sizes: dict[str, int] = {}
    members = [(group(name), p.numel()) for name, p in module.named_parameters() if p.requires_grad]
    for name, size in members:
        sizes[name] = sizes.get(name, 0) + size
    order = {name: number for number, name in enumerate(sizes)}
    return list(sizes), tuple(order[name] for name, _ in members), list(sizes.values())


def _shares(scaled: ScaledGram, total: FisherLogDet) -> Tensor:
    """``tr(ξ⁻¹ ξ_l) / rank``, in terms of C: the scales of rows cancel."""
    norms = (total.log_norms - scaled.log_scales).exp()
    inverse = torch.where(torch.isfinite(total.log_norms), 1 / norms, 0.0)
    values, vectors = torch.linalg.eigh(total.gram)
    rank = int(total.rank)
    if rank == 0:
        return torch.full((len(scaled.gram),), math.nan, dtype=torch.float64, device=scaled.gram.device)
    rows = inverse.unsqueeze(1) * vectors[:, len(values) - rank :]
    products = torch.einsum("gij,ir,jr->gr", scaled.gram, rows, rows)
    return (products / values[len(values) - rank :]).sum(1) / rank

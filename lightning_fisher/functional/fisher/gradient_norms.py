"""Gradient norms of many samples, one each: how much every sample pulls at the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer
from lightning_fisher.functional.evaluation.samples import chunks, num_samples, refuse_closed, take
from lightning_fisher.functional.gram.matrix import scaled_gram
from lightning_fisher.functional.gram.rules.parameter_scale import Scale
from lightning_fisher.functional.losses.loss import LossFn


def log_gradient_norms(
    module: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    loss_fn: LossFn | None = None,
    chunk_size: int = 50,
    logit_norm: float | None = None,
    scale: Scale = "none",
) -> Tensor:
    """``ln‖∇_w ℓ(x_j, y_j; w)‖₂`` of every sample, in evaluation mode, right at any loss.

    At a trained network the largest norms belong to the samples it fits worst or against its other evidence, wrongly
    labeled ones among them (Paul et al. 2021). The logarithm, because near a minimum norms fall below what float32
    holds. These are half the logarithms of the diagonal of ξ, chunk by chunk: the N × N matrix is never formed.

    Cost: one forward and one backward pass a chunk, of `gram_matrix`'s kind; memory that of one chunk.

    Args:
        module: See `gram_matrix`.
        inputs: See `gram_matrix`; N as large as fits, results don't depend on how samples are grouped.
        targets: See `gram_matrix`.
        loss_fn: See `gram_matrix`.
        chunk_size: Samples at a time, two at the least.
        logit_norm: See `gram_matrix`.
        scale: See `gram_matrix`.

    Returns:
        ``[N]``, float64; ``−inf`` where the gradient is exactly zero.

    Raises:
        ValueError: If ``chunk_size`` is not a positive integer, and as `gram_matrix`.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import log_gradient_norms
        >>> log_gradient_norms(torch.nn.Linear(3, 2), torch.randn(200, 3), torch.zeros(200, dtype=torch.long)).shape
        torch.Size([200])
    """
    require_integer("chunk_size", chunk_size, 1)
    refuse_closed(inputs, "inputs")
    refuse_closed(targets, "targets")
    parts = []
    for chunk in chunks(num_samples(inputs), max(chunk_size, 2)):  # alone, samples don't show whether they interact
        how: dict[str, Any] = {"loss_fn": loss_fn, "logit_norm": logit_norm, "scale": scale}
        scaled = scaled_gram(module, take(inputs, chunk), take(targets, chunk), **how)
        parts.append(scaled.gram.diagonal().log() / 2 + scaled.log_scales)
    return torch.cat(parts)

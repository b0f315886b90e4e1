"""Normalization layers in evaluation mode, ``y = x̂ w + b``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import Rule, at_once


def _normalized(function: Callable[..., Tensor]) -> Callable[[Tensor, dict[str, Any]], Tensor]:
    def prepare(A: Tensor, arguments: dict[str, Any]) -> Tensor:
        plain: dict[str, Any] = {name: None for name in ("weight", "bias") if name in arguments}
        return function(**{**arguments, "input": A, **plain})

    return prepare


def _channel_sum(values: Tensor, ndim: int) -> Tensor:
    """``[N, (r,) C, …]`` → ``[N, C]``."""
    extra = values.ndim - ndim
    values = values.flatten(2 + extra).sum(-1) if values.ndim > 2 + extra else values
    return values.sum(1) if extra else values


def _trailing_sum(values: Tensor, shape: Any) -> Tensor:
    """``[N, …, *shape]`` → ``[N, *shape]``."""
    return values.reshape(values.shape[0], -1, *shape).sum(1)


def _batch_norm_rows(A: Tensor, G: Tensor, arguments: dict[str, Any], block: slice) -> Tensor:
    """``Σ G x̂`` a sample and channel, by the framework's own backward kernel with a channel for each."""
    mean, variance = arguments["running_mean"], arguments["running_var"]
    count, channels = A.shape[0], mean.shape[0]
    if A.ndim == arguments["input"].ndim and A.ndim > 2 and A.stride(1) == 1:
        return _channels_last_sums(
            A.movedim(1, -1).flatten(1, -2), G.movedim(1, -1).flatten(1, -2), mean, variance, arguments["eps"]
        )
    owned = A.shape[1] if A.ndim > arguments["input"].ndim else 1
    images = count * owned
    grads = torch.ops.aten.native_batch_norm_backward(
        G.reshape(1, images * channels, -1),
        A.reshape(1, images * channels, -1),
        None,
        mean.repeat(images),
        variance.repeat(images),
        None,
        None,
        False,
        arguments["eps"],
        [False, True, False],
    )
    return grads[1].view(count, owned, channels).sum(1)


def _channels_last_sums(A: Tensor, G: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """``Σ G x̂`` of ``[N, L, C]``: the kernel above would need a copy with every channel by itself."""
    rows = A.new_empty(A.shape[0], A.shape[2])
    parts = at_once(A, 2 * A[0].numel())  # with as much of G in the cache
    buffer = torch.empty_like(A[parts[0]])
    for part in parts:
        normalized = torch.sub(A[part], mean, out=buffer[: part.stop - part.start])
        torch.sum(normalized.mul_(G[part]), 1, out=rows[part])
    return rows * (variance + eps).rsqrt()


def channel_norm(function: Callable[..., Tensor]) -> Rule:
    """The rule of a function with a scale and shift for each channel (dimension 1)."""
    return Rule.from_signature(
        function,
        prepare=_normalized(function),
        rows=lambda A, G, arguments, block: _channel_sum(A * G, arguments["input"].ndim),
        bias=lambda G, arguments: _channel_sum(G, arguments["input"].ndim),
    )


def trailing_norm(function: Callable[..., Tensor]) -> Rule:
    """The rule of a function with a scale and shift for each entry of the trailing dimensions."""
    return Rule.from_signature(
        function,
        leading=lambda arguments, ndim: ndim - len(arguments["normalized_shape"]),
        prepare=_normalized(function),
        rows=lambda A, G, arguments, block: _trailing_sum(A * G, arguments["normalized_shape"]),
        bias=lambda G, arguments: _trailing_sum(G, arguments["normalized_shape"]),
    )


BATCH_NORM = Rule.from_signature(
    F.batch_norm, rows=_batch_norm_rows, bias=lambda G, arguments: _channel_sum(G, arguments["input"].ndim)
)

"""Normalization layers in evaluation mode, ``y = x̂ w + b``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import Arguments, LayerRule
from lightning_fisher.functional.gram.rules.products import at_once


class _Norm(LayerRule):
    """What the families share: the weight's gradient is ``Σ G x̂``, the bias' ``Σ G``."""

    def prepare(self, A: Tensor, arguments: Arguments) -> Tensor:
        """``x̂``: the function without scale and shift."""
        plain: Arguments = {name: None for name in ("weight", "bias") if name in arguments}
        normalized: Tensor = self.function(**{**arguments, "input": A, **plain})
        return normalized

    def weight_rows(self, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """``Σ G x̂``."""
        return self.bias_rows(A * G, arguments)


class ChannelNorm(_Norm):
    """A function with a scale and shift for each channel (dimension 1): group and instance norm."""

    def bias_rows(self, G: Tensor, arguments: Arguments) -> Tensor:
        """``[N, (r,) C, …]`` → ``[N, C]``."""
        return _channel_sum(G, arguments["input"].ndim)


class TrailingNorm(_Norm):
    """A function with a scale and shift for each entry of the trailing dimensions: layer and RMS norm."""

    def leading(self, arguments: Arguments) -> int:
        """All but the normalized dimensions."""
        return int(arguments["input"].ndim) - len(arguments["normalized_shape"])

    def bias_rows(self, G: Tensor, arguments: Arguments) -> Tensor:
        """``[N, …, *shape]`` → ``[N, *shape]``."""
        return G.reshape(G.shape[0], -1, *arguments["normalized_shape"]).sum(1)


class _Found:
    """What one kernel gives for one output gradient: rows of the bias, and the gradient of the input.

    Together they take less than apart; the second is what the backward pass goes on with.
    """

    def __init__(self) -> None:
        self.wanted = True  # until the backward pass has gone on
        self._key: tuple[int, int] | None = None
        self._input: Tensor | None = None
        self._bias: Tensor | None = None

    def keep(self, G: Tensor, input_gradient: Tensor, bias: Tensor) -> None:
        """Of an output gradient."""
        self._key, self._input, self._bias = (G.data_ptr(), G._version), input_gradient, bias

    def bias_of(self, G: Tensor) -> Tensor | None:
        """The rows of the bias, once."""
        bias, self._bias = self._bias, None
        return bias if self._key == (G.data_ptr(), G._version) else None

    def input_of(self, G: Tensor) -> Tensor | None:
        """The gradient of the input, once; nothing is kept from then on."""
        known = self._input if self._key == (G.data_ptr(), G._version) and G.is_contiguous() else None
        self.wanted, self._key, self._input = False, None, None
        return known


class BatchNorm(ChannelNorm):
    """Batch-norm with running statistics."""

    def call(self, function: Callable[..., Tensor], arguments: Arguments) -> Tensor:
        """With a place for what the kernel below finds besides."""
        if function is fixed_batch_norm:
            arguments["found"] = _Found()
        return function(**arguments)

    def prepare(self, A: Tensor, arguments: Arguments) -> Tensor:
        """The input itself: the kernels below standardize it."""
        return A

    def weight_rows(self, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """``Σ G x̂`` a sample and channel, by the framework's own backward kernel with a channel for each."""
        mean, variance = arguments["running_mean"], arguments["running_var"]
        count, channels = A.shape[0], mean.shape[0]
        if A.ndim == arguments["input"].ndim and A.ndim > 2 and A.stride(1) == 1:
            return _channels_last_sums(
                A.movedim(1, -1).flatten(1, -2), G.movedim(1, -1).flatten(1, -2), mean, variance, arguments["eps"]
            )
        owned = A.shape[1] if A.ndim > arguments["input"].ndim else 1
        images = count * owned
        if A.device.type != "cpu":  # whose kernels want a weight or saved statistics, by the layout of the input
            inputs, gradients = (tensor.reshape(images, channels, -1) for tensor in (A, G))
            sums = _sums(inputs, gradients, mean, variance, arguments["eps"])
            return sums.view(count, owned, channels).sum(1)
        found: _Found | None = arguments.get("found")
        everything = found is not None and found.wanted and G.shape == arguments["input"].shape and G.is_contiguous()
        weight = arguments["weight"]
        grads = torch.ops.aten.native_batch_norm_backward(
            G.reshape(1, images * channels, -1),
            A.reshape(1, images * channels, -1),
            weight.repeat(images) if everything and weight is not None else None,
            mean.repeat(images),
            variance.repeat(images),
            None,
            None,
            False,
            arguments["eps"],
            [everything, True, everything],
        )
        if found is not None and everything:
            found.keep(G, grads[0].view_as(G), grads[2].view(count, channels))
        return grads[1].view(count, owned, channels).sum(1)

    def bias_rows(self, G: Tensor, arguments: Arguments) -> Tensor:
        """``Σ G``, known already if the weight came first."""
        known = arguments["found"].bias_of(G) if "found" in arguments else None
        return super().bias_rows(G, arguments) if known is None else known


def _channel_sum(values: Tensor, ndim: int) -> Tensor:
    """``[N, (r,) C, …]`` → ``[N, C]``."""
    extra = values.ndim - ndim
    values = values.flatten(2 + extra).sum(-1) if values.ndim > 2 + extra else values
    return values.sum(1) if extra else values


def _sums(A: Tensor, G: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """``Σ G x̂`` of ``[N, C, L]`` in plain operations, which a GPU runs at once."""
    return ((A - mean[:, None]) * G).sum(2) * (variance + eps).rsqrt()


def _channels_last_sums(A: Tensor, G: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """``Σ G x̂`` of ``[N, L, C]``: the kernel above would need a copy with every channel by itself."""
    rows = A.new_empty(A.shape[0], A.shape[2])
    parts = at_once(A, 2 * A[0].numel())  # with as much of G in the cache
    buffer = torch.empty_like(A[parts[0]])
    for part in parts:
        normalized = torch.sub(A[part], mean, out=buffer[: part.stop - part.start])
        torch.sum(normalized.mul_(G[part]), 1, out=rows[part])
    return rows * (variance + eps).rsqrt()


class _FixedNorm(torch.autograd.Function):
    """``F.batch_norm`` with running statistics as a function of its input only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        found: _Found | None,
    ) -> Tensor:
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, _, variance, weight, _, eps, ctx.found = inputs
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        ctx.save_for_backward(scale.view(-1, *[1] * (input.ndim - 2)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (scale,) = ctx.saved_tensors
        known = None if ctx.found is None else ctx.found.input_of(gradient)
        return gradient * scale if known is None else known, None, None, None, None, None, None


def fixed_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    found: _Found | None = None,
) -> Tensor:
    """`torch.nn.functional.batch_norm`; its arguments, its output. ``found`` is filled by the rule on the way back.

    On a CPU the framework's backward pass computes the sums for weight and bias even if nobody asks, two to three times
    what the gradient of the input takes. Where those are constants and the statistics fixed, it isn't used.
    """
    others = (running_mean, running_var, weight, bias)
    if (
        training
        or running_mean is None
        or running_var is None
        or input.device.type != "cpu"
        or any(other is not None and other.requires_grad for other in others)
    ):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _FixedNorm.apply(input, running_mean, running_var, weight, bias, eps, found)

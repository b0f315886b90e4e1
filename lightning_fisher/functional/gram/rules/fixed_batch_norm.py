"""Batch-norm in evaluation mode, whose backward pass to the input is one multiplication."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _FixedNorm(torch.autograd.Function):
    """``F.batch_norm`` with running statistics as a function of its input only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, _, variance, weight, _, eps = inputs
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        ctx.save_for_backward(scale.view(-1, *[1] * (input.ndim - 2)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (scale,) = ctx.saved_tensors
        return gradient * scale, None, None, None, None, None


def fixed_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`; its arguments, its output.

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
    return _FixedNorm.apply(input, running_mean, running_var, weight, bias, eps)

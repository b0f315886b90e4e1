"""A loss whose backward pass delivers another gradient too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _CarryGradient(torch.autograd.Function):
    """The identity on the loss; adds ``coefficient · gradient`` to the parameters' gradients in the backward pass.

    What the loss is multiplied with later (loss scaling, accumulation) multiplies the carried gradient too.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, coefficient: float, gradients: list[Tensor], *parameters: nn.Parameter
    ) -> Tensor:
        ctx.coefficient, ctx.gradients = coefficient, gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # In the gradient's dtype: a half-precision loss would round the product, or overflow under loss scaling.
        return scale, None, None, *(gradient * (scale.to(gradient) * ctx.coefficient) for gradient in ctx.gradients)


def carry_gradient(
    loss: Tensor, coefficient: float, parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...]
) -> Tensor:
    """``loss``, whose backward pass also delivers ``coefficient · gradients``; parameters without one are left out."""
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    if not pairs:
        return loss
    return _CarryGradient.apply(loss, coefficient, [g for _, g in pairs], *(p for p, _ in pairs))

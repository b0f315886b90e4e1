"""The Jacobian of the softmax, accurate where the network is sure."""

from __future__ import annotations

import torch
from torch import Tensor


class SoftmaxJacobian:
    """``diag(p) − p pᵀ = scale · S`` for N samples, in float64.

    With y the likeliest class, every product is taken over the other classes and over differences to y:
    ``p_y (1 − p_y)`` is never formed, so nothing cancels, and ``scale = max_{k≠y} p_k`` is kept apart, so that
    nothing underflows when squared.

    Args:
        logits: ``[N, K]``, K ≥ 2.

    Attributes:
        scale: ``[N]``.
    """

    def __init__(self, logits: Tensor) -> None:
        log_p = torch.log_softmax(logits.detach().double(), 1)
        top = torch.zeros_like(log_p, dtype=torch.bool).scatter_(1, log_p.argmax(1, keepdim=True), True)
        others = log_p.masked_fill(top, -torch.inf)
        log_scale = others.amax(1, keepdim=True)
        self.scale = log_scale.squeeze(1).exp()
        self._top = top
        self._weights = (others - log_scale).exp().unsqueeze(2)  # p_k / scale, 0 for y
        self._top_p = log_p.exp().masked_fill(~top, 0.0).unsqueeze(2)

    def product(self, matrix: Tensor) -> Tensor:
        """``S M`` for ``M [N, K, D]``."""
        difference = matrix - matrix[self._top].unsqueeze(1)
        mean = (self._weights * difference).sum(1, keepdim=True)  # (Σ_k p_k M_k − M_y) / scale
        return self._weights * (difference - self.scale.view(-1, 1, 1) * mean) - self._top_p * mean

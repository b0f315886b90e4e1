"""Linear layers, ``y = x Wᵀ + b``: the positions of a sample are flattened to L."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_fisher.functional.gram.rules.base import MAX_ELEMENTS, Rule, Workspace


def _positions(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    return A.reshape(A.shape[0], -1, A.shape[-1]), G.reshape(G.shape[0], -1, G.shape[-1])


def _linear_rows(A: Tensor, G: Tensor, arguments: dict[str, Any], block: slice) -> Tensor:
    A, G = _positions(A, G)
    return G[..., block].transpose(1, 2) @ A


def _linear_gram(A: Tensor, G: Tensor, arguments: dict[str, Any], workspace: Workspace) -> Tensor | None:
    A, G = _positions(A, G)
    return product_gram(A, G)


def products_pay(count: int, length: int, d_in: int, d_out: int) -> bool:
    """Whether products of all pairs of positions cost less than the gradients and their Gram matrix."""
    return count * length**2 * (d_in + d_out) < (length + count) * d_in * d_out


def product_gram(A: Tensor, G: Tensor) -> Tensor | None:
    """``Σ_{l,m} (a_jl·a_km)(g_jl·g_km)`` where that costs less than the gradients ``Σ_l g_l a_lᵀ`` themselves."""
    count, length, d_in = A.shape
    d_out = G.shape[2]
    if not products_pay(count, length, d_in, d_out):
        return None
    if length == 1:
        A, G = A.squeeze(1), G.squeeze(1)
        return (A @ A.T) * (G @ G.T)
    flat_a, flat_g = A.flatten(0, 1), G.flatten(0, 1)
    step = max(1, MAX_ELEMENTS // (length * length * count))
    parts = []
    for start in range(0, count, step):
        rows = slice(start * length, (start + step) * length)
        pairs = (flat_a[rows] @ flat_a.T).mul_(flat_g[rows] @ flat_g.T)
        parts.append(pairs.view(-1, length, count, length).sum((1, 3)))
    return torch.cat(parts)


LINEAR = Rule(
    ("input", "weight", "bias"),
    {"bias": None},
    by_name=False,
    leading=lambda arguments, ndim: ndim - 1,
    rows=_linear_rows,
    features=lambda arguments: arguments["weight"].shape[0],
    gram=_linear_gram,
    bias=lambda G, arguments: G.reshape(G.shape[0], -1, G.shape[-1]).sum(1),
)

"""Embeddings: rows of a table, picked by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import MAX_ELEMENTS, Rule, Workspace


def _embedding_rows(A: Tensor, G: Tensor, arguments: dict[str, Any], block: slice) -> Tensor:
    vocabulary, width = arguments["weight"].shape
    padding = arguments["padding_idx"]
    index, G = A.reshape(A.shape[0], -1), G.reshape(G.shape[0], -1, width)
    size = block.stop - block.start
    inside = (index >= block.start) & (index < block.stop)
    if padding is not None:
        inside &= index != padding % vocabulary
    index = torch.where(inside, index - block.start, 0)
    rows = G.new_zeros(G.shape[0], size, width)
    return rows.scatter_add_(1, index.unsqueeze(2).expand_as(G), G * inside.unsqueeze(2))


def _embedding_gram(A: Tensor, G: Tensor, arguments: dict[str, Any], workspace: Workspace) -> Tensor | None:
    """``Σ_{l,m} [i_jl = i_km] g_jl·g_km``: never touches the vocabulary."""
    vocabulary, width = arguments["weight"].shape
    count = A.shape[0]
    index, G = A.reshape(count, -1), G.reshape(count, -1, width)
    length = index.shape[1]
    if count * length**2 > (length + count) * vocabulary:
        return None
    if arguments["padding_idx"] is not None:
        G = G * (index != arguments["padding_idx"] % vocabulary).unsqueeze(2)
    flat_index, flat_g = index.flatten(), G.flatten(0, 1)
    step = max(1, MAX_ELEMENTS // (length * length * count))
    parts = []
    for start in range(0, count, step):
        rows = slice(start * length, (start + step) * length)
        pairs = (flat_g[rows] @ flat_g.T).mul_(flat_index[rows].unsqueeze(1) == flat_index)
        parts.append(pairs.view(-1, length, count, length).sum((1, 3)))
    return torch.cat(parts)


EMBEDDING = Rule.from_signature(
    F.embedding,
    leading=lambda arguments, ndim: ndim,
    rows=_embedding_rows,
    features=lambda arguments: arguments["weight"].shape[0],
    gram=_embedding_gram,
)

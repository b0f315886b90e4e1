"""Embeddings: rows of a table, picked by index."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import Arguments, LayerRule
from lightning_fisher.functional.gram.rules.products import MAX_ELEMENTS, Workspace


class Embedding(LayerRule):
    """`torch.nn.functional.embedding`."""

    def __init__(self) -> None:
        super().__init__(F.embedding)

    def covers(self, arguments: Arguments) -> bool:
        """Gradients scaled by frequency in the batch belong to no sample."""
        return not arguments["scale_grad_by_freq"]

    def leading(self, arguments: Arguments) -> int:
        """Every dimension of the indices."""
        return int(arguments["input"].ndim)

    def weight_features(self, arguments: Arguments) -> int:
        """The vocabulary."""
        return int(arguments["weight"].shape[0])

    def weight_rows(self, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """Output gradients, added up by index."""
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

    def weight_gram(self, A: Tensor, G: Tensor, arguments: Arguments, workspace: Workspace) -> Tensor | None:
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

    def bias_rows(self, G: Tensor, arguments: Arguments) -> Tensor:
        """There is no bias."""
        raise NotImplementedError("an embedding has no bias")

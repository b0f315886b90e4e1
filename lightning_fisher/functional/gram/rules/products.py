"""Products of per-sample quantities, ``[N, N]`` from ``[N, …]``, in blocks that memory and caches hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_fisher.functional.evaluation.samples import chunks

MAX_ELEMENTS = 2**26  # of one temporary: 256 MiB in float32
CACHED = 2**18  # of a temporary that is read again at once on a CPU: 1 MiB in float32, which a core's cache holds
WIDTH, LONG = 32, 2048  # of blocks of a symmetric product, and from which length on they pay (`benchmarks`)


class Workspace:
    """One buffer that the layers of a pass share: on a CPU fresh pages cost more than the product that fills them."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def like(self, tensor: Tensor, *shape: int) -> Tensor:
        """An uninitialized tensor, valid until the next call."""
        count, buffer = math.prod(shape), self._buffer
        kind = tensor.dtype, tensor.device
        if buffer is None or buffer.numel() < count or (buffer.dtype, buffer.device) != kind:
            self._buffer = None  # let go before the larger one is made
            buffer = self._buffer = torch.empty(count, dtype=tensor.dtype, device=tensor.device)
        return buffer[:count].view(shape)


def blocks(features: int, elements: int) -> Iterator[slice]:
    """Slices of ``features`` output features so that each block holds at most `MAX_ELEMENTS` of ``elements``."""
    size = max(1, features * MAX_ELEMENTS // max(elements, 1))
    for start in range(0, features, size):
        yield slice(start, min(start + size, features))


def at_once(tensor: Tensor, elements: int) -> list[slice]:
    """Slices of samples whose temporaries, ``elements`` each, a CPU's cache holds; elsewhere fewer, larger ones."""
    count = tensor.shape[0]
    limit = CACHED * torch.get_num_threads() if tensor.device.type == "cpu" else MAX_ELEMENTS
    return chunks(count, max(1, limit // max(elements, 1)))


def gram_of_rows(parts: Iterable[Tensor]) -> Tensor:
    """``Σ R Rᵀ`` over matrices ``R`` of N rows: ``[N, N]``, symmetric.

    On a CPU only the blocks on and below the diagonal are multiplied, two thirds of the time for 100 rows; BLAS has a
    routine for it (``syrk``), torch has no way to it.
    """
    total: Tensor | None = None
    below: Tensor | None = None
    for rows in parts:
        count, length = rows.shape
        if rows.device.type != "cpu" or length < LONG or count <= WIDTH:
            total = rows @ rows.T if total is None else total.addmm_(rows, rows.T)
            continue
        below = rows.new_zeros(count, count) if below is None else below
        for start in range(0, count, WIDTH):
            block = slice(start, start + WIDTH)
            below[start:, block].addmm_(rows[start:], rows[block].T)
    if below is not None:
        both = below.tril() + below.tril(-1).T
        total = both if total is None else total.add_(both)
    assert total is not None
    return total


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

"""Per-sample weight gradients and their Gram matrices, one rule a function of torch.

Every rule receives the input ``A`` and the output gradient ``G`` of one call with the samples in dimension 0, and
gives the N × N Gram matrix of that call's weight gradients, or rows of the per-sample gradients themselves.
Temporaries stay below `MAX_ELEMENTS`: a weight is worked through in blocks of output features.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.functional.evaluation.samples import chunks

MAX_ELEMENTS = 2**26  # of one temporary: 256 MiB in float32
CACHED = 2**18  # of a temporary that is read again at once on a CPU: 1 MiB in float32, which a core's cache holds
WIDTH, LONG = 32, 2048  # of blocks of a symmetric product, and from which length on they pay (`benchmarks`)
Layout = tuple[int, int, bool]  # (batch dimension, rows a sample, sample-major)


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


@dataclass(frozen=True, eq=False)
class Rule:
    """How to call a function, and where its samples and parameters are.

    Attributes:
        names: Argument names in order, with ``defaults`` for the optional ones.
        by_name: Whether the function takes keyword arguments.
        leading: ``(arguments, dims of A)`` → how many leading dimensions of A and G may hold the samples.
        rows: ``(A, G, arguments, block)`` → per-sample weight gradient ``[N, …]`` of a block of output features.
        features: ``arguments`` → number of output features ``rows`` can be cut into.
        gram: ``(A, G, arguments, workspace)`` → cheaper form of ``rows · rowsᵀ``, or ``None`` where there is none.
        bias: ``(G, arguments)`` → per-sample bias gradient ``[N, …]``.
        prepare: ``(A, arguments)`` → what ``rows`` needs of A, computed in the call's own layout.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    by_name: bool = True
    leading: Callable[[dict[str, Any], int], int] = lambda arguments, ndim: 1
    rows: Callable[[Tensor, Tensor, dict[str, Any], slice], Tensor] | None = None
    features: Callable[[dict[str, Any]], int] = lambda arguments: 1
    gram: Callable[[Tensor, Tensor, dict[str, Any], Workspace], Tensor | None] = lambda A, G, arguments, workspace: None
    bias: Callable[[Tensor, dict[str, Any]], Tensor] | None = None
    prepare: Callable[[Tensor, dict[str, Any]], Tensor] = lambda A, arguments: A

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All arguments by name, in the function's order."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        return {name: given[name] if name in given else self.defaults[name] for name in self.names}

    @classmethod
    def from_signature(cls, function: Callable[..., Any], **how: Any) -> Rule:
        """A rule for a Python function."""
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return cls(tuple(p.name for p in parameters), defaults, **how)


def arrange(tensor: Tensor, layout: Layout, count: int) -> Tensor:
    """Samples first: ``[N, …]``, or ``[N, r, …]`` where a sample owns r rows."""
    dim, repeats, major = layout
    tensor = tensor.movedim(dim, 0)
    if repeats == 1:
        return tensor
    if major:
        return tensor.unflatten(0, (count, repeats))
    return tensor.unflatten(0, (repeats, count)).transpose(0, 1)


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


def weight_gram(rule: Rule, A: Tensor, G: Tensor, arguments: dict[str, Any], workspace: Workspace) -> Tensor:
    """Gram matrix ``[N, N]`` of the per-sample weight gradients of one call."""
    gram = rule.gram(A, G, arguments, workspace)
    if gram is not None:
        return gram
    assert rule.rows is not None
    return gram_of_rows(
        rule.rows(A, G, arguments, block).flatten(1)
        for block in blocks(rule.features(arguments), G.shape[0] * arguments["weight"].numel())
    )

"""Per-sample weight gradients and their Gram matrices, one rule a function of torch.

Every rule receives the input ``A`` and the output gradient ``G`` of one call with the samples in dimension 0, and
gives the N × N Gram matrix of that call's weight gradients, or rows of the per-sample gradients themselves.
Temporaries stay below `MAX_ELEMENTS`: a weight is worked through in blocks of output features.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ELEMENTS = 2**26  # of one temporary: 256 MiB in float32
Layout = tuple[int, int, bool]  # (batch dimension, rows a sample, sample-major)


@dataclass(frozen=True, eq=False)
class Rule:
    """How to call a function, and where its samples and parameters are.

    Attributes:
        names: Argument names in order, with ``defaults`` for the optional ones.
        by_name: Whether the function takes keyword arguments.
        leading: ``(arguments, dims of A)`` → how many leading dimensions of A and G may hold the samples.
        rows: ``(A, G, arguments, block)`` → per-sample weight gradient ``[N, …]`` of a block of output features.
        features: ``arguments`` → number of output features ``rows`` can be cut into.
        gram: Cheaper form of ``rows · rowsᵀ``, or ``None`` where there is none for these shapes.
        bias: ``(G, arguments)`` → per-sample bias gradient ``[N, …]``.
        prepare: ``(A, arguments)`` → what ``rows`` needs of A, computed in the call's own layout.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    by_name: bool = True
    leading: Callable[[dict[str, Any], int], int] = lambda arguments, ndim: 1
    rows: Callable[[Tensor, Tensor, dict[str, Any], slice], Tensor] | None = None
    features: Callable[[dict[str, Any]], int] = lambda arguments: 1
    gram: Callable[[Tensor, Tensor, dict[str, Any]], Tensor | None] = lambda A, G, arguments: None
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


def weight_gram(rule: Rule, A: Tensor, G: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Gram matrix ``[N, N]`` of the per-sample weight gradients of one call."""
    gram = rule.gram(A, G, arguments)
    if gram is not None:
        return gram
    assert rule.rows is not None
    total: Tensor | None = None
    for block in blocks(rule.features(arguments), G.shape[0] * arguments["weight"].numel()):
        rows = rule.rows(A, G, arguments, block).flatten(1)
        part = rows @ rows.T
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


# --- linear: y = x Wᵀ + b, the positions of a sample flattened to L ------------------------------------------


def _positions(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    return A.reshape(A.shape[0], -1, A.shape[-1]), G.reshape(G.shape[0], -1, G.shape[-1])


def _linear_rows(A: Tensor, G: Tensor, arguments: dict[str, Any], block: slice) -> Tensor:
    A, G = _positions(A, G)
    return G[..., block].transpose(1, 2) @ A


def _linear_gram(A: Tensor, G: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    A, G = _positions(A, G)
    return _product_gram(A, G)


def _product_gram(A: Tensor, G: Tensor) -> Tensor | None:
    """``Σ_{l,m} (a_jl·a_km)(g_jl·g_km)`` where that costs less than the gradients ``Σ_l g_l a_lᵀ`` themselves."""
    count, length, d_in = A.shape
    d_out = G.shape[2]
    if count * length**2 * (d_in + d_out) >= (length + count) * d_in * d_out:
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


# --- convolution ---------------------------------------------------------------------------------------------


def _tuple(value: Any, dims: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (tuple, list, torch.Size)) else [int(value)]
    return values * dims if len(values) == 1 else values


def _geometry(A: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Input with one-sided padding applied, stride, symmetric padding, dilation."""
    kernel = arguments["weight"].shape[2:]
    dims = len(kernel)
    stride, dilation = _tuple(arguments["stride"], dims), _tuple(arguments["dilation"], dims)
    padding = arguments["padding"]
    if padding == "valid":
        return A, stride, [0] * dims, dilation
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if all(t % 2 == 0 for t in total):
            return A, stride, [t // 2 for t in total], dilation
        sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        return F.pad(A, sides), stride, [0] * dims, dilation
    return A, stride, _tuple(padding, dims), dilation


def _conv_rows(A: Tensor, G: Tensor, arguments: dict[str, Any], block: slice) -> Tensor:
    weight = arguments["weight"]
    if A.ndim > weight.ndim:  # a sample owns several images: their gradients add up
        rows = _conv_rows(A.flatten(0, 1), G.flatten(0, 1), arguments, block)
        return rows.unflatten(0, A.shape[:2]).sum(1)
    A, stride, padding, dilation = _geometry(A, arguments)
    groups = int(arguments["groups"])
    if groups == 1:
        G = G[:, block]
    # The framework's own weight gradient of a convolution in which every sample is a group of its own.
    count, channels = A.shape[:2]
    outputs = G.shape[1]
    kernel = weight.shape[2:]
    dims = len(kernel)
    grads = torch.ops.aten.convolution_backward(
        G.reshape(1, count * outputs, *G.shape[2:]),
        A.reshape(1, count * channels, *A.shape[2:]),
        weight.new_zeros(()).expand(count * outputs, channels // groups, *kernel),
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * dims,
        count * groups,
        [False, True, False],
    )
    return grads[1].view(count, -1)


def _prefers_offsets(A: Tensor, G: Tensor, kernel: torch.Size) -> bool:
    """Small maps with many channels: plain matrix products beat the grouped convolution (measured on CPU)."""
    return math.prod(kernel) > 1 and math.prod(G.shape[2:]) <= 64 and min(A.shape[1], G.shape[1]) >= 32


def _conv_gram(A: Tensor, G: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """The product form on unfolded inputs where it pays, else one product ``G Aᵀ`` a kernel offset where that does."""
    weight = arguments["weight"]
    if A.ndim > weight.ndim or int(arguments["groups"]) != 1:
        return None
    kernel = weight.shape[2:]
    count, d_out = G.shape[:2]
    length, d_in = math.prod(G.shape[2:]), weight[0].numel()
    pays = count * length**2 * (d_in + d_out) < (length + count) * d_in * d_out
    if pays and weight.ndim == 4 and count * d_in * length <= MAX_ELEMENTS:
        A, stride, padding, dilation = _geometry(A, arguments)
        columns = F.unfold(A, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
        return _product_gram(columns.transpose(1, 2), G.flatten(2).transpose(1, 2))
    if not _prefers_offsets(A, G, kernel):
        return None
    total = A.new_zeros(count, count)
    G = G.flatten(2)
    for window in _windows(A, arguments):
        for block in blocks(d_out, count * d_out * A.shape[1]):
            rows = (G[:, block] @ window).flatten(1)
            total.addmm_(rows, rows.T)
    return total


def _windows(A: Tensor, arguments: dict[str, Any]) -> Iterator[Tensor]:
    """What each kernel offset sees of the input: ``[N, L, C_in]``, offset by offset."""
    A, stride, padding, dilation = _geometry(A, arguments)
    kernel = arguments["weight"].shape[2:]
    A = F.pad(A, [side for p in reversed(padding) for side in (p, p)]).movedim(1, -1).contiguous()
    for offset in product(*map(range, kernel)):
        window = A
        for dim, (start, step, spacing, k) in enumerate(zip(offset, stride, dilation, kernel, strict=True), 1):
            outputs = (A.shape[dim] - spacing * (k - 1) - 1) // step + 1
            stop = start * spacing + (outputs - 1) * step + 1
            window = window[(slice(None),) * dim + (slice(start * spacing, stop, step),)]
        yield window.reshape(A.shape[0], -1, A.shape[-1])


def _conv_bias(G: Tensor, arguments: dict[str, Any]) -> Tensor:
    trailing = tuple(range(G.ndim - arguments["weight"].ndim + 2, G.ndim))
    G = G.sum(trailing) if trailing else G
    return G.sum(1) if G.ndim == 3 else G


# --- normalisation in evaluation mode: y = x̂ w + b -----------------------------------------------------------


def _normalised(function: Callable[..., Tensor]) -> Callable[[Tensor, dict[str, Any]], Tensor]:
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


def _channel_norm(function: Callable[..., Tensor]) -> Rule:
    return Rule.from_signature(
        function,
        prepare=_normalised(function),
        rows=lambda A, G, arguments, block: _channel_sum(A * G, arguments["input"].ndim),
        bias=lambda G, arguments: _channel_sum(G, arguments["input"].ndim),
    )


def _trailing_norm(function: Callable[..., Tensor]) -> Rule:
    return Rule.from_signature(
        function,
        leading=lambda arguments, ndim: ndim - len(arguments["normalized_shape"]),
        prepare=_normalised(function),
        rows=lambda A, G, arguments, block: _trailing_sum(A * G, arguments["normalized_shape"]),
        bias=lambda G, arguments: _trailing_sum(G, arguments["normalized_shape"]),
    )


# --- embedding -----------------------------------------------------------------------------------------------


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


def _embedding_gram(A: Tensor, G: Tensor, arguments: dict[str, Any]) -> Tensor | None:
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


def _convolution() -> Rule:
    return Rule(
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
        rows=_conv_rows,
        features=lambda arguments: 1 if int(arguments["groups"]) > 1 else arguments["weight"].shape[0],
        gram=_conv_gram,
        bias=_conv_bias,
    )


RULES: dict[Any, Rule] = {}
RULES[F.linear] = Rule(
    ("input", "weight", "bias"),
    {"bias": None},
    by_name=False,
    leading=lambda arguments, ndim: ndim - 1,
    rows=_linear_rows,
    features=lambda arguments: arguments["weight"].shape[0],
    gram=_linear_gram,
    bias=lambda G, arguments: G.reshape(G.shape[0], -1, G.shape[-1]).sum(1),
)
RULES[F.batch_norm] = Rule.from_signature(
    F.batch_norm, rows=_batch_norm_rows, bias=lambda G, arguments: _channel_sum(G, arguments["input"].ndim)
)
RULES[F.group_norm] = _channel_norm(F.group_norm)
RULES[F.instance_norm] = _channel_norm(F.instance_norm)
RULES[F.layer_norm] = _trailing_norm(F.layer_norm)
RULES[F.rms_norm] = _trailing_norm(F.rms_norm)
RULES[F.embedding] = Rule.from_signature(
    F.embedding,
    leading=lambda arguments, ndim: ndim,
    rows=_embedding_rows,
    features=lambda arguments: arguments["weight"].shape[0],
    gram=_embedding_gram,
)
RULES |= {function: _convolution() for function in (torch.conv1d, torch.conv2d, torch.conv3d)}

"""Convolutions in 1 to 3 dimensions, with groups, strides, dilation and every padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.rule import MAX_ELEMENTS, Rule, Workspace, blocks
from lightning_fisher.functional.rules_linear import product_gram, products_pay

CACHED = 2**18  # elements of unfolded inputs in flight on a CPU: 1 MiB in float32, which a core's cache holds


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


def _prefers_columns(A: Tensor, G: Tensor, kernel: torch.Size) -> bool:
    """Small maps with many channels: a batched product beats the grouped convolution (`benchmarks`, on a CPU)."""
    return math.prod(kernel) > 1 and math.prod(G.shape[2:]) <= 64 and min(A.shape[1], G.shape[1]) >= 32


def _conv_gram(A: Tensor, G: Tensor, arguments: dict[str, Any], workspace: Workspace) -> Tensor | None:
    """The product form on unfolded inputs where it pays, else one product ``G · columns`` a sample where that does."""
    weight = arguments["weight"]
    if A.ndim > weight.ndim or int(arguments["groups"]) != 1:
        return None
    kernel = weight.shape[2:]
    count, d_out = G.shape[:2]
    length, d_in = math.prod(G.shape[2:]), weight[0].numel()
    if products_pay(count, length, d_in, d_out) and weight.ndim == 4 and count * d_in * length <= MAX_ELEMENTS:
        A, stride, padding, dilation = _geometry(A, arguments)
        columns = F.unfold(A, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
        return product_gram(columns.transpose(1, 2), G.flatten(2).transpose(1, 2))
    if not _prefers_columns(A, G, kernel) or d_in * length > MAX_ELEMENTS:
        return None
    total = A.new_zeros(count, count)
    G = G.flatten(2)
    windows = _windows(A, arguments)
    at_once = CACHED * torch.get_num_threads() if A.device.type == "cpu" else MAX_ELEMENTS
    step = max(1, at_once // (d_in * length))
    for block in blocks(d_out, count * d_out * d_in):
        rows = workspace.like(A, count, G[0, block].shape[0], d_in)
        for part in (slice(start, start + step) for start in range(0, count, step)):
            torch.bmm(G[part, block], windows[part].reshape(-1, length, d_in), out=rows[part])
        flat = rows.flatten(1)
        total.addmm_(flat, flat.T)
    return total


def _windows(A: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What every output position sees of the input, channels last: a view ``[N, *outputs, *kernel, C_in]``."""
    A, stride, padding, dilation = _geometry(A, arguments)
    kernel = arguments["weight"].shape[2:]
    A = F.pad(A, [side for p in reversed(padding) for side in (p, p)]).movedim(1, -1).contiguous()
    outputs = [
        (size - spacing * (k - 1) - 1) // step + 1
        for size, spacing, k, step in zip(A.shape[1:], dilation, kernel, stride, strict=False)
    ]
    strides = A.stride()[1:-1]
    return A.as_strided(
        (A.shape[0], *outputs, *kernel, A.shape[-1]),
        (
            A.stride(0),
            *(s * step for s, step in zip(strides, stride, strict=True)),
            *(s * spacing for s, spacing in zip(strides, dilation, strict=True)),
            1,
        ),
    )


def _conv_bias(G: Tensor, arguments: dict[str, Any]) -> Tensor:
    trailing = tuple(range(G.ndim - arguments["weight"].ndim + 2, G.ndim))
    G = G.sum(trailing) if trailing else G
    return G.sum(1) if G.ndim == 3 else G


CONVOLUTION = Rule(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    rows=_conv_rows,
    features=lambda arguments: 1 if int(arguments["groups"]) > 1 else arguments["weight"].shape[0],
    gram=_conv_gram,
    bias=_conv_bias,
)

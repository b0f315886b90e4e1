"""Convolutions in 1 to 3 dimensions, with groups, strides, dilation and every padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import Arguments, LayerRule
from lightning_fisher.functional.gram.rules.products import (
    MAX_ELEMENTS,
    Workspace,
    at_once,
    blocks,
    gram_of_rows,
    product_gram,
    products_pay,
)


def _tuple(value: Any, dims: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (tuple, list, torch.Size)) else [int(value)]
    return values * dims if len(values) == 1 else values


def _geometry(A: Tensor, arguments: Arguments) -> tuple[Tensor, list[int], list[int], list[int]]:
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


class Convolution(LayerRule):
    """`torch.conv1d`, `torch.conv2d` or `torch.conv3d`."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__(
            function,
            ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
            {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
        )

    def covers(self, arguments: Arguments) -> bool:
        """A single image without a batch dimension has no sample of its own."""
        return bool(arguments["input"].ndim == arguments["weight"].ndim)

    def unit_dimension(self, name: str, arguments: Arguments) -> int | None:
        """The channels', of the weight."""
        return 1 - int(arguments["weight"].ndim) if name == "weight" else None

    def weight_features(self, arguments: Arguments) -> int:
        """Output channels, as long as they all see the same input."""
        return 1 if int(arguments["groups"]) > 1 else int(arguments["weight"].shape[0])

    def weight_rows(self, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """The framework's weight gradient of a convolution in which every sample is a group of its own."""
        weight = arguments["weight"]
        if A.ndim > weight.ndim:  # a sample owns several images: their gradients add up
            rows = self.weight_rows(A.flatten(0, 1), G.flatten(0, 1), arguments, block)
            return rows.unflatten(0, A.shape[:2]).sum(1)
        A, stride, padding, dilation = _geometry(A, arguments)
        groups = int(arguments["groups"])
        if groups == 1:
            G = G[:, block]
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

    def weight_gram(self, A: Tensor, G: Tensor, arguments: Arguments, workspace: Workspace) -> Tensor | None:
        """The product form on unfolded inputs, or one product ``G · columns`` a sample, where they pay."""
        weight = arguments["weight"]
        if A.ndim > weight.ndim or int(arguments["groups"]) != 1:
            return None
        kernel = weight.shape[2:]
        count, d_out = G.shape[:2]
        length, d_in = math.prod(G.shape[2:]), weight[0].numel()
        if products_pay(count, length, d_in, d_out) and weight.ndim == 4 and count * d_in * length <= MAX_ELEMENTS:
            A, stride, padding, dilation = _geometry(A, arguments)
            unfolded = F.unfold(A, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
            return product_gram(unfolded.transpose(1, 2), G.flatten(2).transpose(1, 2))
        if not _prefers_columns(A, G, kernel):
            return None
        columns = _Columns(A, G, arguments)
        if columns.elements > MAX_ELEMENTS:
            return None
        G = G.flatten(2)
        total: Tensor | None = None
        for block in blocks(d_out, count * d_out * d_in):
            rows = workspace.like(A, kernel[0], count, G[0, block].shape[0], d_in // kernel[0])
            for part in columns.parts:
                gradient = G[part, block]
                for offset, seen in enumerate(columns.of(part)):
                    torch.bmm(gradient, seen, out=rows[offset, part])
            gram = gram_of_rows(rows.flatten(2))
            total = gram if total is None else total.add_(gram)
        return total

    def bias_rows(self, G: Tensor, arguments: Arguments) -> Tensor:
        """Sums over positions."""
        trailing = tuple(range(G.ndim - arguments["weight"].ndim + 2, G.ndim))
        G = G.sum(trailing) if trailing else G
        return G.sum(1) if G.ndim == 3 else G


def _prefers_columns(A: Tensor, G: Tensor, kernel: torch.Size) -> bool:
    """Where products beat the grouped convolution: all but few channels that lie apart (`benchmarks`, on a CPU)."""
    inputs, outputs = A.shape[1], G.shape[1]
    return A.stride(1) == 1 or math.prod(kernel) == 1 or inputs <= 4 or inputs * outputs > 256


class _Columns:
    """What every output position sees of the input, channels last, for each offset of the kernel's first dimension.

    Only the other dimensions are unfolded: the rows that an output sees at one offset are those that its neighbors
    see at others. With a stride in the first dimension that holds within each residue of the rows.

    Attributes:
        elements: Of a sample's columns.
        parts: Samples that are unfolded together.
    """

    def __init__(self, A: Tensor, G: Tensor, arguments: Arguments) -> None:
        A, stride, padding, dilation = _geometry(A, arguments)
        kernel, outputs = arguments["weight"].shape[2:], G.shape[2:]
        self._input = A.movedim(1, -1)
        self._length = math.prod(outputs)
        self._pointwise = math.prod(kernel) == 1 and not any(padding)
        if self._pointwise:
            self._input = self._input[tuple(slice(None, None, step) for step in (1, *stride))]
        rows = outputs[0] + (kernel[0] - 1) * dilation[0] // stride[0]
        sizes = [size + 2 * p for size, p in zip(A.shape[2:], padding, strict=True)]
        sizes[0] = max(sizes[0], rows * stride[0])
        shape = (stride[0], rows, *outputs[1:], *kernel[1:], A.shape[1])
        self.elements = math.prod(shape)
        self.parts = at_once(A, self.elements)
        step = self.parts[0].stop
        if self._pointwise or self.elements > MAX_ELEMENTS:
            return
        padded = A.new_zeros(step, *sizes, A.shape[1])
        self._inner = padded
        for dim, (p, size) in enumerate(zip(padding, A.shape[2:], strict=True), start=1):
            self._inner = self._inner.narrow(dim, p, size)
        sample, first, *others, channel = padded.stride()
        unfolded = [s * by for steps in (stride, dilation) for s, by in zip(others, steps[1:], strict=True)]
        self._windows = padded.as_strided((step, *shape), (sample, first, first * stride[0], *unfolded, channel))
        self._buffer = A.new_empty(step, *shape)
        flat = self._buffer.view(step, stride[0], rows * math.prod(outputs[1:]), -1)
        self._offsets = []
        for i in range(kernel[0]):
            row, residue = divmod(i * dilation[0], stride[0])
            start = row * math.prod(outputs[1:])
            self._offsets.append(flat[:, residue, start : start + self._length])

    def of(self, part: slice) -> Iterator[Tensor]:
        """Columns ``[n, L, k₂ ⋯ C_in]`` of some samples, one tensor an offset; valid until the next part."""
        if self._pointwise:
            yield self._input[part].reshape(-1, self._length, self._input.shape[-1])
            return
        count = part.stop - part.start
        self._inner[:count] = self._input[part]
        self._buffer[:count] = self._windows[:count]
        for columns in self._offsets:
            yield columns[:count]

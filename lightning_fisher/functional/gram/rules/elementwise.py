"""Raw parameters that scale or shift: ``x * w`` and ``x + w``, with w broadcast over the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.functional.gram.rules.base import Arguments, Rule


class _Elementwise(Rule):
    """A commutative function of a tensor and a parameter, in either order."""

    parameters = ("weight",)

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__(function, ("input", "weight"))

    def bind(self, *args: Any, **kwargs: Any) -> Arguments:
        """The parameter is the weight; anything but two tensors is marked as not plain."""
        if len(args) != 2 or kwargs:
            return {"input": None, "weight": None}
        first, second = args
        if isinstance(first, nn.Parameter):
            first, second = second, first
        return {"input": first, "weight": second}

    def call(self, function: Callable[..., Tensor], arguments: Arguments) -> Tensor:
        """By position: methods take no keywords."""
        return function(arguments["input"], arguments["weight"])

    def covers(self, arguments: Arguments) -> bool:
        """The parameter may not enlarge the input, nor change its type."""
        input, weight = arguments["input"], arguments["weight"]
        if not (isinstance(input, Tensor) and isinstance(weight, Tensor)) or input.dtype != weight.dtype:
            return False
        if weight.ndim > input.ndim or self.leading(arguments) < 1:
            return False
        sizes = zip(reversed(input.shape), reversed(weight.shape), strict=False)
        return all(w in (1, size) for size, w in sizes)

    def leading(self, arguments: Arguments) -> int:
        """The dimensions that the parameter is broadcast over."""
        return int(arguments["input"].ndim) - len(_shape(arguments["weight"]))

    def rows(self, name: str, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """Sums over all that the parameter is broadcast over."""
        values, shape = self.products(A, G), _shape(arguments["weight"])
        owned = math.prod(values.shape[1 : values.ndim - len(shape)])
        values = values.reshape(len(values), owned, *values.shape[values.ndim - len(shape) :]).sum(1)
        alike = [dim for dim, size in enumerate(shape, start=1) if size == 1]
        values = values.sum(alike, keepdim=True) if alike else values
        return values.reshape(len(values), -1)

    def products(self, A: Tensor, G: Tensor) -> Tensor:
        """The gradient with respect to the parameter before it is summed up."""
        raise NotImplementedError


class Scale(_Elementwise):
    """``x * w``."""

    def products(self, A: Tensor, G: Tensor) -> Tensor:
        """``A G``."""
        return A * G


class Shift(_Elementwise):
    """``x + w``."""

    def needs_input(self, names: Iterable[str]) -> bool:
        """It does not."""
        return False

    def products(self, A: Tensor, G: Tensor) -> Tensor:
        """``G``."""
        return G


def _shape(weight: Tensor) -> tuple[int, ...]:
    """Its shape without leading ones."""
    sizes = list(weight.shape)
    while sizes and sizes[0] == 1:
        sizes.pop(0)
    return tuple(sizes)


SCALES = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
SHIFTS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)

"""Linear layers, ``y = x Wᵀ + b``: the positions of a sample are flattened to L."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_fisher.functional.gram.rules.base import Arguments, LayerRule
from lightning_fisher.functional.gram.rules.products import Workspace, product_gram


class Linear(LayerRule):
    """`torch.nn.functional.linear`."""

    def __init__(self) -> None:
        super().__init__(F.linear, ("input", "weight", "bias"), {"bias": None})

    def call(self, function: Callable[..., Tensor], arguments: Arguments) -> Tensor:
        """By position: the function takes no keywords."""
        return function(*arguments.values())

    def covers(self, arguments: Arguments) -> bool:
        """A vector as the weight, or a bias that is broadcast, is left to the general method."""
        weight, bias = arguments["weight"], arguments["bias"]
        return bool(weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1]))

    def leading(self, arguments: Arguments) -> int:
        """All but the features."""
        return int(arguments["input"].ndim) - 1

    def unit_dimension(self, name: str, arguments: Arguments) -> int | None:
        """The last, of the weight's rows."""
        return -1 if name == "weight" else None

    def weight_features(self, arguments: Arguments) -> int:
        """Rows of the weight."""
        return int(arguments["weight"].shape[0])

    def weight_rows(self, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """``Σ_l g_l a_lᵀ``."""
        return _positions(G)[..., block].transpose(1, 2) @ _positions(A)

    def weight_gram(self, A: Tensor, G: Tensor, arguments: Arguments, workspace: Workspace) -> Tensor | None:
        """The product form."""
        return product_gram(_positions(A), _positions(G))

    def bias_rows(self, G: Tensor, arguments: Arguments) -> Tensor:
        """``Σ_l g_l``."""
        return _positions(G).sum(1)


def _positions(values: Tensor) -> Tensor:
    return values.unsqueeze(1) if values.ndim == 2 else values.flatten(1, -2)


class Product(Linear):
    """``x W``, of a matrix whose rows are the input's features: `torch.matmul`, ``@``, `torch.mm`."""

    parameters: tuple[str, ...] = ("weight",)

    def __init__(self, function: Callable[..., Tensor]) -> None:
        LayerRule.__init__(self, function, ("input", "weight"))

    def bind(self, *args: Any, **kwargs: Any) -> Arguments:
        """Two tensors by position; anything else is marked as not plain."""
        if len(args) != 2 or kwargs:
            return {"input": None, "weight": None}
        return {"input": args[0], "weight": args[1]}

    def covers(self, arguments: Arguments) -> bool:
        """The parameter is a matrix, on the right."""
        input, weight = arguments["input"], arguments["weight"]
        return isinstance(input, Tensor) and isinstance(weight, Tensor) and weight.ndim == 2 and input.ndim >= 2

    def unit_dimension(self, name: str, arguments: Arguments) -> int | None:
        """None: the weight's rows are input features."""
        return None

    def weight_rows(self, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """``Σ_l a_l g_lᵀ``, cut by input features."""
        return _positions(A)[..., block].transpose(1, 2) @ _positions(G)


class ShiftedProduct(Product):
    """`torch.addmm` as a linear layer, ``b + x W``."""

    parameters = ("weight", "bias")

    def bind(self, *args: Any, **kwargs: Any) -> Arguments:
        """Bias, input and weight by position."""
        if len(args) != 3 or kwargs:
            return {"bias": None, "input": None, "weight": None}
        return {"bias": args[0], "input": args[1], "weight": args[2]}

    def covers(self, arguments: Arguments) -> bool:
        """The bias is a vector of the output's features."""
        return super().covers(arguments) and arguments["bias"].shape == arguments["weight"].shape[1:]

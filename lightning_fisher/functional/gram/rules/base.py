"""What a rule is: how a function uses its parameters, and their per-sample gradients from one call of it.

Every rule receives the input ``A`` and the output gradient ``G`` of one call with the samples in dimension 0 and
gives rows of the per-sample gradients, or their N × N Gram matrix where that is cheaper.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from lightning_fisher.functional.gram.rules.products import Workspace, blocks, gram_of_rows

Arguments = dict[str, Any]  # of a call, by name


class Rule(ABC):
    """Per-sample gradients of the parameters of one function.

    Temporaries stay below `products.MAX_ELEMENTS`: a parameter is worked through in blocks of output features.

    Attributes:
        function: The function itself.
        parameters: Names of the arguments that are differentiated.
    """

    parameters: tuple[str, ...] = ("weight", "bias")

    def __init__(
        self, function: Callable[..., Any], names: tuple[str, ...] = (), defaults: Arguments | None = None
    ) -> None:
        """Args name the function's arguments in order, where its signature can't be inspected."""
        self.function = function
        if not names:
            signature = inspect.signature(function).parameters.values()
            names = tuple(p.name for p in signature)
            defaults = {p.name: p.default for p in signature if p.default is not p.empty}
        self._names, self._defaults = names, defaults or {}

    def bind(self, *args: Any, **kwargs: Any) -> Arguments:
        """All arguments by name, in the function's order."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        return {name: given[name] if name in given else self._defaults[name] for name in self._names}

    def call(self, function: Callable[..., Tensor], arguments: Arguments) -> Tensor:
        """``function``, which is the rule's own or one in its place, with bound arguments."""
        return function(**arguments)

    def covers(self, arguments: Arguments) -> bool:
        """Check whether the rule holds for a call with these arguments."""
        return True

    def needs_input(self, names: Iterable[str]) -> bool:
        """Check whether the gradients of these parameters depend on the input."""
        return True

    def leading(self, arguments: Arguments) -> int:
        """How many leading dimensions of the input and the output may hold the samples."""
        return 1

    def prepare(self, A: Tensor, arguments: Arguments) -> Tensor:
        """What the rule needs of the input, computed in the call's own layout."""
        return A

    def features(self, name: str, arguments: Arguments) -> int:
        """The number of output features that `rows` of a parameter can be cut into."""
        return 1

    def unit_dimension(self, name: str, arguments: Arguments) -> int | None:
        """The dimension of the output, from the end, whose entries belong to those of a parameter's dimension 0."""
        return None

    @abstractmethod
    def rows(self, name: str, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """Per-sample gradients ``[N, …]`` of a block of output features of the parameter ``name``."""

    def gram(self, name: str, A: Tensor, G: Tensor, arguments: Arguments, workspace: Workspace) -> Tensor:
        """Gram matrix ``[N, N]`` of the per-sample gradients of the parameter ``name``."""
        elements = G.shape[0] * arguments[name].numel()
        return gram_of_rows(
            self.rows(name, A, G, arguments, block).flatten(1)
            for block in blocks(self.features(name, arguments), elements)
        )

    def scaled_gram(
        self, name: str, A: Tensor, G: Tensor, arguments: Arguments, workspace: Workspace, scales: Tensor
    ) -> Tensor:
        """`gram` of the gradients times ``scales``, which has the shape of the parameter; from the rows."""
        features, elements = self.features(name, arguments), G.shape[0] * scales.numel()
        return gram_of_rows(
            rows * block_of(scales, block, features).to(rows.dtype)
            for block in blocks(features, elements)
            for rows in (self.rows(name, A, G, arguments, block).flatten(1),)
        )


def block_of(scales: Tensor, block: slice, features: int) -> Tensor:
    """The scales of the columns of `Rule.rows` of a block, one of ``features`` along dimension 0 or all of them."""
    return (scales[block] if scales.ndim and len(scales) == features else scales).flatten()


class LayerRule(Rule):
    """A function of an input, a weight and perhaps a bias: what layers of torch call."""

    def needs_input(self, names: Iterable[str]) -> bool:
        """The weight's do."""
        return "weight" in names

    def features(self, name: str, arguments: Arguments) -> int:
        """Those of the weight; a bias is never cut."""
        return self.weight_features(arguments) if name == "weight" else 1

    def rows(self, name: str, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """Per-sample gradients of the weight (a block of it) or of the bias."""
        if name == "weight":
            return self.weight_rows(A, G, arguments, block)
        return self.bias_rows(G, arguments)

    def gram(self, name: str, A: Tensor, G: Tensor, arguments: Arguments, workspace: Workspace) -> Tensor:
        """The cheaper form of the weight's, if there is one."""
        cheaper = self.weight_gram(A, G, arguments, workspace) if name == "weight" else None
        return super().gram(name, A, G, arguments, workspace) if cheaper is None else cheaper

    def weight_features(self, arguments: Arguments) -> int:
        """The number of output features that `weight_rows` can be cut into."""
        return 1

    @abstractmethod
    def weight_rows(self, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """Per-sample gradients ``[N, …]`` of a block of output features of the weight."""

    def weight_gram(self, A: Tensor, G: Tensor, arguments: Arguments, workspace: Workspace) -> Tensor | None:
        """The Gram matrix without the rows, or ``None`` where the rows are cheaper."""
        return None

    @abstractmethod
    def bias_rows(self, G: Tensor, arguments: Arguments) -> Tensor:
        """Per-sample gradients ``[N, …]`` of the bias."""

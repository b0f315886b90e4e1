"""Rules for layers of a user's own, and a helper that checks them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_fisher.functional.gram.rules.base import Arguments, Rule

RowsFunction = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]
_Function = TypeVar("_Function", bound=RowsFunction)

CUSTOM_RULES: dict[type[nn.Module], CustomRule] = {}
SAME = 1e-6  # relative difference between a rule and autograd in float64


class CustomRule(Rule):
    """Per-sample gradients of all parameters of a layer, by a function of the layer, its input and output gradient."""

    def __init__(self, rows: RowsFunction) -> None:
        super().__init__(rows, ("layer", "input"))
        self._rows = rows

    def rows(self, name: str, A: Tensor, G: Tensor, arguments: Arguments, block: slice) -> Tensor:
        """Those of the parameter ``name``; where a sample owns several rows, they are added up."""
        layer, ndim = arguments["layer"], arguments["input"].ndim
        if A.ndim == ndim:
            return _checked(self._rows(layer, A, G), layer, name, len(A))
        rows = _checked(self._rows(layer, A.flatten(0, 1), G.flatten(0, 1)), layer, name, A.shape[0] * A.shape[1])
        return rows.unflatten(0, A.shape[:2]).sum(1)

    def gram(self, name: str, A: Tensor, G: Tensor, arguments: Arguments, workspace: object) -> Tensor:
        """``R Rᵀ`` of the rows, which are formed at once."""
        rows = self.rows(name, A, G, arguments, slice(0, 1)).flatten(1)
        return rows @ rows.T


def _checked(rows: Mapping[str, Tensor], layer: nn.Module, name: str, count: int) -> Tensor:
    shape = (count, *layer.get_parameter(name).shape)
    if name not in rows or rows[name].shape != shape:
        got = f"shape {tuple(rows[name].shape)}" if name in rows else f"rows for {sorted(rows)} only"
        raise ValueError(
            f"Expected the rule of {type(layer).__name__} to return rows of shape {shape} for the parameter {name!r}, "
            f"but got {got}."
        )
    return rows[name]


def register_rule(layer_type: type[nn.Module]) -> Callable[[_Function], _Function]:
    """Register per-sample gradients for a layer of your own, so that ξ takes one backward pass through it.

    The decorated function gets the layer, its input ``[N, …]`` and the gradient of its output ``[N, …]``, samples in
    dimension 0, and returns the per-sample gradients ``[N, *shape]`` of every parameter of the layer, by name. It is
    used for calls of the layer with one tensor; every other call, and every layer without a rule, takes one backward
    pass a sample. Subclasses that override ``forward`` need a rule of their own.

    A rule that is wrong doesn't give a wrong ξ: the matrix is checked against an ordinary backward pass. `check_rule`
    tells where it is wrong.

    Args:
        layer_type: The class of the layer.

    Raises:
        ValueError: If ``layer_type`` is no class of modules.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import check_rule, register_rule
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.scale = torch.nn.Parameter(torch.ones(width))
        ...     def forward(self, x):  # [N, L, width]
        ...         return x * self.scale
        >>> @register_rule(Scale)
        ... def scale_gradients(layer, inputs, output_gradients):
        ...     return {"scale": (inputs * output_gradients).sum(1)}
        >>> check_rule(Scale(4), torch.randn(5, 3, 4))
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise ValueError(f"Expected argument `layer_type` to be a subclass of torch.nn.Module, but got {layer_type!r}.")

    def register(function: _Function) -> _Function:
        CUSTOM_RULES[layer_type] = CustomRule(function)
        return function

    return register


def rule_of(layer: nn.Module) -> CustomRule | None:
    """The rule registered for the class of a layer, or for one whose ``forward`` it inherits."""
    for ancestor in type(layer).__mro__:
        if ancestor in CUSTOM_RULES:
            return CUSTOM_RULES[ancestor] if type(layer).forward is ancestor.forward else None
    return None


def check_rule(layer: nn.Module, inputs: Tensor) -> None:
    """Compare the rule registered for a layer with autograd, sample by sample, in float64.

    Args:
        layer: A layer of a registered class, with parameters of any values.
        inputs: N samples in dimension 0, at least two; random ones say more than zeros.

    Raises:
        ValueError: If there is no rule, or its gradients of a parameter are not those of autograd.
    """
    rule = rule_of(layer)
    if rule is None:
        raise ValueError(
            f"Expected argument `layer` to be of a class with a rule (`register_rule`), but got {type(layer).__name__}."
        )
    layer = copy.deepcopy(layer).double()
    inputs = inputs.detach().double() if inputs.is_floating_point() else inputs
    outputs = layer(inputs)
    gradients = torch.randn(outputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = gradients.to(outputs.device)
    named = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
    alone = [
        torch.autograd.grad(
            layer(inputs[j : j + 1]),
            list(named.values()),
            gradients[j : j + 1],
            materialize_grads=True,
            allow_unused=True,
        )
        for j in range(len(inputs))
    ]
    for position, name in enumerate(named):
        expected = torch.stack([gradient[position] for gradient in alone])
        with torch.no_grad():
            found = rule.rows(name, inputs, gradients, {"layer": layer, "input": inputs}, slice(0, 1))
        error = ((found - expected).norm() / expected.norm().clamp_min(1e-300)).item()
        if not error <= SAME:
            raise ValueError(
                f"Expected the rule of {type(layer).__name__} to give the gradients of autograd for {name!r}, "
                f"but got a relative difference of {error:.1e}."
            )

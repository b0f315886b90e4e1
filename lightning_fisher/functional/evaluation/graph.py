"""What autograd recorded of a forward pass: its precision, the tensors it reaches, gradients through it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from lightning_fisher.exceptions import NoGradientError, ReducedPrecisionError, SecondDerivativeError, first_line

_ONCE = re.compile(
    r"double.?backward|differentiate twice|derivative for .* not implemented"
    r"|view was created in no_grad mode",  # the parts of a nested tensor
    re.IGNORECASE,
)
REDUCED = (torch.float16, torch.bfloat16)


def dense(gradient: Tensor) -> Tensor:
    """The gradient as a dense tensor, also where a layer gives a sparse one."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def nodes(tensor: Tensor, stop: Iterable[Any] = ()) -> Iterator[Any]:
    """The nodes of the graph above ``tensor``, each once, up to those of ``stop``."""
    seen: set[Any] = set(stop)
    waiting = [] if tensor.grad_fn is None else [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(parent for parent, _ in node.next_functions if parent is not None)


def leaves(tensor: Tensor, stop: Iterable[Any] = ()) -> list[Tensor]:
    """The tensors that the graph above ``tensor`` ends at, those that would get a gradient; not beyond ``stop``."""
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    return [node.variable for node in nodes(tensor, stop) if hasattr(node, "variable")]


def refuse_constant(losses: Tensor, parameters: Iterable[Tensor]) -> None:
    """Refuse losses whose graph reaches none of the parameters: zeros would be no gradients.

    Raises:
        NoGradientError: With what may be the reason.
    """
    own = {id(parameter) for parameter in parameters}
    require_dependence(any(id(leaf) in own for leaf in leaves(losses)))


def require_dependence(dependent: bool) -> None:
    """Refuse a loss without a gradient.

    Raises:
        NoGradientError: If it is not ``dependent`` on the parameters.
    """
    if not dependent:
        raise NoGradientError


def refuse_reduced_precision(loss: Tensor) -> None:
    """Refuse a loss whose gradient passes through half precision; where no gradient flows it does no harm.

    Looks at the graph after the pass, so that the pass itself runs as it would without us: function modes turn the
    fused kernels of attention off.

    Raises:
        ReducedPrecisionError: With the remedy.
    """
    for node in nodes(loss):
        for output in getattr(node, "_input_metadata", ()):  # of the backward node: the outputs of the forward one
            if output.dtype in REDUCED and tuple(output.shape) != ():  # a scalar loss may be cast: that is no rounding
                raise ReducedPrecisionError(output.dtype)


def differentiated_pairs(outputs: Any, directions: Any) -> list[tuple[Tensor, Tensor]]:
    """The outputs that have a graph, each with its direction, in trees of one structure."""
    return [
        (output, direction.reshape(output.shape))  # some modules squeeze a batch of one away
        for output, direction in zip(tree_flatten(outputs)[0], tree_flatten(directions)[0], strict=True)
        if isinstance(output, Tensor) and output.requires_grad
    ]


def pulled_back(outputs: Any, directions: Any, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of ``⟨direction, output⟩``, one float64 tensor a parameter; the graph is not kept."""
    pairs = differentiated_pairs(outputs, directions)
    if not pairs:
        return [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    gradients = torch.autograd.grad(
        [output for output, _ in pairs],
        list(parameters),
        [direction for _, direction in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
    return [dense(gradient).double() for gradient in gradients]


def refuse_single_derivatives(gradients: Iterable[Tensor | None], what: str, remedy: str = "") -> None:
    """Refuse gradients that pass a function of `torch.autograd.function.once_differentiable`: their own are lost.

    Torch cuts the graph there, and raises only where a pass happens to run into the cut.

    Args:
        gradients: With a graph (``create_graph=True``).
        what: See `second_derivatives`.
        remedy: See `second_derivatives`.

    Raises:
        SecondDerivativeError: If one does.
    """
    known: set[Any] = set()
    for gradient in gradients:
        found = [] if gradient is None else list(nodes(gradient, known))
        if any(node.name() == "torch::autograd::Error" for node in found):
            raise SecondDerivativeError(what, "one of its functions is marked as `once_differentiable`", remedy)
        known.update(found)


@contextmanager
def second_derivatives(what: str, remedy: str = "") -> Iterator[None]:
    """Say what is missing where an operation can be differentiated once only.

    Args:
        what: What needs them, for the message.
        remedy: What to do instead.

    Raises:
        SecondDerivativeError: In place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _ONCE.search(str(error)):
            raise
        raise SecondDerivativeError(what, first_line(error), remedy) from error

"""What autograd recorded of a forward pass: in which precision it ran, and which tensors it reaches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

REDUCED = (torch.float16, torch.bfloat16)


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


def refuse_reduced_precision(loss: Tensor) -> None:
    """Refuse a loss whose gradient passes through half precision; where no gradient flows it does no harm.

    Looks at the graph after the pass, so that the pass itself runs as it would without us: function modes turn the
    fused kernels of attention off.

    Raises:
        ValueError: With the remedy.
    """
    for node in nodes(loss):
        for output in getattr(node, "_input_metadata", ()):  # of the backward node: the outputs of the forward one
            if output.dtype in REDUCED and tuple(output.shape) != ():  # a scalar loss may be cast: that is no rounding
                raise ValueError(
                    "Expected a forward pass in float32 or float64, but the module enters autocast, or casts to "
                    f"{output.dtype}, by itself between its trainable parameters and the loss, where a finite "
                    "difference is noise; leave mixed precision to the caller (in Lightning: the Trainer's "
                    "`precision`), and keep what gradients pass through in float32."
                )

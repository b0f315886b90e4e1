"""A pass by vmap compared with an ordinary one: some of torch's own rules for vmap are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lightning_fisher.functional.multipass.vmap.passes import Found, Passes
from lightning_fisher.functional.multipass.vmap.stacked import VmapError

KEPT = 8  # structures of batches for a module
GRADIENT = {torch.float32: 1e-2, torch.float64: 1e-6}  # relative difference of gradients that may be rounding


class Compared:
    """What vmap was compared with ordinary passes for: modules, structures of batches, losses; none is kept alive."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, list[tuple[Any, Any]]] = WeakKeyDictionary()

    def is_new(self, module: nn.Module, structure: Any, loss_fn: Any) -> bool:
        """Whether it wasn't, or too long ago."""
        return (structure, _reference(loss_fn)) not in self._known.get(module, [])

    def add(self, module: nn.Module, structure: Any, loss_fn: Any) -> None:
        """It was."""
        known = self._known.setdefault(module, [])
        known.append((structure, _reference(loss_fn)))
        del known[:-KEPT]


COMPARED = Compared()


def _reference(loss_fn: Any) -> Any:
    try:
        return ref(loss_fn)
    except TypeError:  # a built-in function, None
        return loss_fn


def compare(passes: Passes, found: Found, weights: Sequence[Tensor], index: int) -> None:
    """Compare the gradients of one sub-batch with those of an ordinary pass, unless that draws random numbers.

    Args:
        passes: What found them.
        found: Of all sub-batches.
        weights: Of this one.
        index: Which.

    Raises:
        VmapError: If they differ by more than rounding.
    """
    expected = passes.ordinary(weights, index)
    if expected is None:
        return
    seen = torch.cat([gradient[index].flatten() for gradient in found.gradients])
    right = torch.cat([gradient.flatten() for gradient in expected])
    difference, size = (seen - right).norm(), torch.maximum(seen.norm(), right.norm())
    if bool(torch.isfinite(size)) and bool(difference > GRADIENT[right.dtype] * size):
        raise VmapError(
            "its gradients there are not those of an ordinary pass (relative difference "
            f"{float(difference / size):.1e})"
        )

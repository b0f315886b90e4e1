"""Modules whose weights a `training_step` moves by itself: moved averages, target networks."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.callbacks.multipass.state.tensors import ChangedTensors


def unstepped_modules(module: nn.Module, stepped: Container[int]) -> Iterator[nn.Module]:
    """The largest submodules that have parameters, none of which an optimizer steps.

    Args:
        module: The root.
        stepped: The ids of the parameters that are stepped.
    """
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(id(p) in stepped for p in parameters):
            yield child
        else:
            yield from unstepped_modules(child, stepped)


class AverageBuffers:
    """Buffers that belong to moved averages (how many updates there were, averaged statistics), as they are now.

    Args:
        modules: Modules that may be moved averages.
        changed: Which parameters the step is known to change; a module with one of them is a moved average.
    """

    def __init__(self, modules: Sequence[nn.Module], changed: ChangedTensors) -> None:
        self._changed, self._modules = changed, modules
        self._held: list[tuple[nn.Module, list[tuple[nn.Module, str, Tensor, Tensor]]]] = []
        for module in modules:
            found = [(owner, name, b) for owner in module.modules() for name, b in owner._buffers.items()]
            # The device would have to be asked whether one has changed: all are copied.
            copies = [(owner, name, b, b.detach().clone()) for owner, name, b in found if b is not None]
            if copies:
                self._held.append((module, copies))
        self._versions = self._now()

    def _now(self) -> list[Any]:
        buffers = [owner._buffers.get(name) for _, copies in self._held for owner, name, *_ in copies]
        return [(id(b), None if b is None or b.is_inference() else (b._version, b.data_ptr())) for b in buffers]

    def again(self) -> AverageBuffers:
        """Those of now: these if none is known to move and none has changed, as far as torch tells."""
        still = not any(self._moves(module) for module, _ in self._held)
        return self if still and self._now() == self._versions else AverageBuffers(self._modules, self._changed)

    def _moves(self, module: nn.Module) -> bool:
        return any(p in self._changed for p in module.parameters())

    def restore(self) -> None:
        """Put them back, also where another tensor has taken a buffer's place."""
        for module, copies in self._held:
            if not self._moves(module):
                continue
            with torch.no_grad():
                for owner, name, buffer, values in copies:
                    owner._buffers[name] = buffer
                    if not buffer.is_inference():
                        buffer.copy_(values)

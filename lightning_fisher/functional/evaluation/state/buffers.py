"""Buffers and frozen parameters, put back after a pass."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.state.attributes import Attributes, preserved_attributes
from lightning_fisher.functional.evaluation.state.layers import submodules

FROZEN = 2  # times as many frozen parameters as trained ones are copied at the most
_PLAIN_TENSORS = (Tensor, nn.Parameter, *([nn.Buffer] if hasattr(nn, "Buffer") else []))

_Groups = defaultdict[tuple[torch.dtype, torch.device], list[Tensor]]


class BufferSnapshot:
    """The buffers of a module, bit for bit, also where a forward pass replaces the tensor itself.

    And its frozen parameters, which a forward pass may move too (a momentum encoder), unless they are many times those
    that are trained: a copy of a large backbone would cost more than the pass.

    Args:
        module: The module.
        previous: An earlier snapshot of it. As long as the module holds the same tensors, what was found out about them
            is taken over: of a module with dozens of small buffers that takes longer than the copies.
    """

    def __init__(self, module: nn.Module, previous: BufferSnapshot | None = None) -> None:
        tree = submodules(module)
        owners = [submodule for submodule in tree if submodule._buffers]
        names = [tuple(owner._buffers) for owner in owners]
        parameters = (p for submodule in tree for p in submodule._parameters.values() if p is not None)
        frozen = [p for p in parameters if not p.requires_grad and not p.is_inference()]
        tensors = [*(buffer for owner in owners for buffer in owner._buffers.values()), *frozen]
        self._names, self._held = names, [*owners, *tensors]
        self._memory = [_memory(tensor) for tensor in tensors]
        self._owned: list[tuple[nn.Module, str, Tensor | None]]
        self._groups: _Groups
        self._frozen: list[tuple[nn.Parameter, Tensor]]
        if previous is not None and self._holds_what(previous):
            self._owned, self._groups, self._frozen = previous._owned, previous._groups, previous._frozen
        else:
            self._owned = [(owner, name, buffer) for owner in owners for name, buffer in owner._buffers.items()]
            self._groups, self._frozen = self._found(module, frozen)
        self._values = {kind: [torch.empty_like(b) for b in group] for kind, group in self._groups.items()}
        for kind, group in self._groups.items():
            torch._foreach_copy_(self._values[kind], group)
        self._versions = self._now() if previous is None else None
        self.attributes: Attributes | None = None

    def _holds_what(self, other: BufferSnapshot) -> bool:
        """Whether both are of the same tensors, in the same memory, under the same names."""
        same = len(self._held) == len(other._held) and self._names == other._names and self._memory == other._memory
        return same and all(map(operator.is_, self._held, other._held))

    def _found(
        self, module: nn.Module, frozen: list[nn.Parameter]
    ) -> tuple[_Groups, list[tuple[nn.Parameter, Tensor]]]:
        """What is copied: one operation a dtype and device, as each costs a launch."""
        groups: _Groups = defaultdict(list)
        for *_, buffer in self._owned:
            if buffer is not None and not buffer.is_inference():  # those can't change
                groups[buffer.dtype, buffer.device].append(buffer.detach())
        movable = [(parameter, parameter.data) for parameter in _movable(module, frozen)]
        for _, data in movable:
            groups[data.dtype, data.device].append(data)
        return groups, movable

    def restore(self) -> None:
        """Put every buffer back; unchanged ones cost a copy, nothing else."""
        with torch.no_grad():
            for kind, group in self._groups.items():
                torch._foreach_copy_(group, self._values[kind])
        for submodule, name, buffer in self._owned:
            submodule._buffers[name] = buffer
        for parameter, data in self._frozen:  # `data` has a version of its own: no graph notices that it was copied to
            if parameter.data.data_ptr() != data.data_ptr():
                parameter.data = data
        if self._versions is not None:
            self._versions = self._now()

    def restore_moved(self) -> None:
        """`restore` if anything was changed in place or replaced, as far as that shows without a look at values.

        Always, of a snapshot taken after a ``previous`` one. ``attributes`` too, if set: a pass may have kept a
        part of its graph for the next (LeViT's attention biases).
        """
        if self.attributes is not None:
            self.attributes.restore()
        if self._now() != self._versions:
            self.restore()

    def _now(self) -> list[tuple[int, int]]:
        buffers = [submodule._buffers.get(name) for submodule, name, _ in self._owned]
        tensors = [*buffers, *(parameter for parameter, _ in self._frozen)]
        return [
            (id(tensor), 0 if tensor is None or tensor.is_inference() else tensor._version) for tensor in tensors
        ] + [(data.data_ptr(), parameter.data_ptr()) for parameter, data in self._frozen]


def _movable(module: nn.Module, frozen: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The frozen parameters, where they are at most twice as many as those that are trained."""
    distinct = list({id(p): p for p in frozen}.values())
    if not distinct:
        return []
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    small = sum(p.numel() for p in distinct) <= FROZEN * trained
    return [p for p in distinct if p.layout is torch.strided and p.is_leaf] if small else []


def _memory(tensor: Tensor | None) -> Any:
    """Where a tensor is, and how large; of one that doesn't say, something that no other is equal to."""
    if tensor is None:
        return None
    if type(tensor) in _PLAIN_TENSORS and tensor.layout is torch.strided:
        return tensor.data_ptr(), tensor.numel()
    return object()


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[BufferSnapshot]:
    """Restore buffers (batch-norm statistics and counters, spectral norm), and attributes, on the way out."""
    snapshot = BufferSnapshot(module)
    try:
        with preserved_attributes(module) as snapshot.attributes:
            yield snapshot
    finally:
        snapshot.restore()

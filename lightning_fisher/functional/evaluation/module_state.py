"""Leave a module unchanged: mode, buffers, attributes, ``requires_grad`` flags, random state."""

from __future__ import annotations

import collections
import copy
import ctypes
import operator
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FROZEN = 2  # times as many frozen parameters as trained ones are copied at the most
LARGE = 20_000  # items of a container that is looked at
# Parameters, buffers, hooks, modes: looked at by themselves; forward passes are replaced while one is watched.
_OF_MODULES = set(vars(nn.Module())) | {"forward"}
_TABLES = [*sorted(name for name in _OF_MODULES if "_hooks" in name), "_non_persistent_buffers_set"]
_CONTAINERS = {
    *(list, dict, set),
    *(collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter),
}
DEPTH = 3  # of containers in containers
_PLAIN_TENSORS = (Tensor, nn.Parameter, *([nn.Buffer] if hasattr(nn, "Buffer") else []))

_Groups = defaultdict[tuple[torch.dtype, torch.device], list[Tensor]]


@contextmanager
def evaluation_mode(module: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Put the whole module in evaluation mode and give every submodule its own flag back.

    Args:
        module: Any module.
        batch_statistics: Keep batch-norm layers in training mode, so that they use the statistics of the batch.
    """
    flags = [(submodule, submodule.training) for submodule in submodules(module)]
    try:
        # The flag is set directly: `train()` is often overridden with side effects.
        for submodule, _ in flags:
            submodule.training = batch_statistics and isinstance(submodule, _BatchNorm)
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


@contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Switch ``requires_grad`` off, so that a backward pass skips the gradients of the weights."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def refuse_renormalized_embeddings(module: nn.Module) -> None:
    """Refuse embeddings with ``max_norm``, whose forward pass changes the weights.

    Raises:
        ValueError: If there is one.
    """
    for name, submodule in module.named_modules():
        if isinstance(submodule, (nn.Embedding, nn.EmbeddingBag)) and submodule.max_norm is not None:
            raise ValueError(
                f"Expected forward passes that leave the weights alone, but the embedding {name or 'itself'!r} "
                f"renormalizes its weights (max_norm={submodule.max_norm}); set `max_norm=None`."
            )


def standardizes_one(input: Tensor, running_mean: Tensor | None = None, *args: Any, **kwargs: Any) -> bool:
    """Whether a call of batch-norm with batch statistics sees a batch of one: timm's standardized weights, say.

    Samples folded into another dimension show in the comparison of the outputs.
    """
    return running_mean is None and input.shape[0] == 1


def dense(gradient: Tensor) -> Tensor:
    """The gradient as a dense tensor, also where a layer gives a sparse one."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def submodules(module: nn.Module) -> list[nn.Module]:
    """Every module of the tree once, in the order of `torch.nn.Module.modules`, which takes twice as long."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        submodule = waiting.pop()
        if id(submodule) not in found:
            found[id(submodule)] = submodule
            waiting.extend(child for child in reversed(list(submodule._modules.values())) if child is not None)
    return list(found.values())


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


class Attributes:
    """What submodules hold under which name, what is in their lists, dictionaries and sets, and their hooks.

    Hugging Face's models install hooks in their first pass and note it in an attribute; either without the other would
    install them again. Which buffers there are, too: a mask may be registered by the pass that first needs it.
    """

    def __init__(self, module: nn.Module) -> None:
        tree = submodules(module)
        self._held = [(submodule, type(submodule), _own(vars(submodule))) for submodule in tree]
        self._containers: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        for *_, held in self._held:
            for value in held.values():
                self._look_into(value, seen)
        self._tables: list[tuple[nn.Module, type, Any, Any]] = []
        self._empty: list[tuple[nn.Module, type, Any]] = []
        self._buffers: list[tuple[nn.Module, type, Any, tuple[str, ...]]] = []
        for submodule in tree:
            attributes, kind = vars(submodule), type(submodule)
            for name in _TABLES:
                table = attributes.get(name)
                if table:
                    self._tables.append((submodule, kind, table, copy.copy(table)))
                elif table is not None:
                    self._empty.append((submodule, kind, table))
            buffers = attributes.get("_buffers")
            if isinstance(buffers, dict):  # not those of scripted code, which registers none
                self._buffers.append((submodule, kind, buffers, tuple(buffers)))

    def _look_into(self, value: Any, seen: set[int], depth: int = DEPTH) -> None:
        """Containers, and those in them."""
        if type(value) not in _CONTAINERS or len(value) > LARGE or id(value) in seen:
            return
        seen.add(id(value))
        self._containers.append((value, copy.copy(value)))
        if depth and type(value) is not set:
            for item in value.values() if isinstance(value, dict) else value:
                self._look_into(item, seen, depth - 1)

    def restore(self) -> None:
        """Put everything back; what is new goes."""
        for submodule, kind, held in self._held:
            if type(submodule) is not kind:  # a lazy layer has become what it is
                continue
            attributes = vars(submodule)
            now = _own(attributes)
            if len(now) != len(held) or any(now.get(name, Attributes) is not value for name, value in held.items()):
                for name in now.keys() - held.keys():
                    del attributes[name]
                attributes.update(held)
        for container, before in self._containers:
            _refill(container, before)
        for submodule, kind, table, before in self._tables:
            if type(submodule) is kind:
                _refill(table, before)
        for submodule, kind, table in self._empty:
            if table and type(submodule) is kind:
                table.clear()
        for submodule, kind, buffers, names in self._buffers:
            if len(buffers) > len(names) and type(submodule) is kind:
                for name in buffers.keys() - set(names):
                    del buffers[name]


def _refill(container: Any, before: Any) -> None:
    if not _same(container, before):
        container.clear()
        container.update(before) if isinstance(container, (dict, set)) else container.extend(before)


def _same(now: Any, before: Any) -> bool:
    """The same items, by identity: tensors have no truth."""
    if len(now) != len(before):
        return False
    if isinstance(before, set):
        return bool(now == before)
    one, other = (iter(c.items()) if isinstance(c, dict) else ((0, item) for item in c) for c in (now, before))
    return all(a is b and (k is j or k == j) for (k, a), (j, b) in zip(one, other, strict=True))


def _own(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _OF_MODULES}


@contextmanager
def preserved_attributes(module: nn.Module) -> Iterator[Attributes]:
    """Restore on the way out what a forward pass keeps in attributes: activations, counters, lists of them."""
    attributes = Attributes(module)
    try:
        yield attributes
    finally:
        attributes.restore()


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[BufferSnapshot]:
    """Restore buffers (batch-norm statistics and counters, spectral norm), and attributes, on the way out."""
    snapshot = BufferSnapshot(module)
    try:
        with preserved_attributes(module) as snapshot.attributes:
            yield snapshot
    finally:
        snapshot.restore()


class RandomStateSnapshot:
    """State of Python's, numpy's (where it is in use) and torch's random generators, on the CPU and given devices."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
        self._torch = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(index) for index in self._cuda]
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")  # mixing augmentations draw from it; not a dependency
        self._numpy = None if numpy is None else numpy.random.get_state()

    def unchanged(self) -> bool:
        """Whether nothing was drawn since."""
        return self.same_as(RandomStateSnapshot(torch.device("cuda", index) for index in self._cuda))

    def same_as(self, other: RandomStateSnapshot) -> bool:
        """Whether nothing was drawn between two snapshots on the same devices."""
        tensors = zip([self._torch, *self._cuda_states], [other._torch, *other._cuda_states], strict=True)
        return (
            all(_content(a) == _content(b) for a, b in tensors)
            and self._python == other._python
            and _same_numpy(self._numpy, other._numpy)
        )

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self._torch)
        for index, state in zip(self._cuda, self._cuda_states, strict=True):
            torch.cuda.set_rng_state(state, index)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _content(state: Tensor) -> bytes:
    """Of a generator's state, which is on the CPU whatever the generator's device: compared without any operation."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)


def _same_numpy(one: Any, other: Any) -> bool:
    """``(name, keys, position, …)`` of numpy's generator, or None."""
    if one is None or other is None:
        return one is other
    name, keys, *rest = one
    return bool((name, *rest) == (other[0], *other[2:]) and (keys == other[1]).all())


@contextmanager
def preserved_random_state(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore the random state on the way out."""
    snapshot = RandomStateSnapshot(devices)
    try:
        yield
    finally:
        snapshot.restore()

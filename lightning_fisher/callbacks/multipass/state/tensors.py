"""Tensors that a `training_step` changes in place: parameters outside of the optimizers, clamped weights, queues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError

SPARE = 2**26  # bytes that may be copied to see what changes, whatever the size of the network


class ChangedTensors:
    """Which tensors the step is known to change: of these a copy is kept, of the others the version is looked at."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._known

    def __bool__(self) -> bool:
        return bool(self._known)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._known.values())

    def add(self, tensor: Tensor) -> None:
        """From now on a copy is kept."""
        self._known[id(tensor)] = tensor


class TensorSnapshot:
    """Values, places and ``requires_grad`` of tensors.

    Args:
        named: ``(name, tensor)``.
        changed: What the step is known to change; learns.
        copied: Copy all of them, as far as memory allows; else only those known to change.
        compared: Compare the values; else torch's version counters tell what has changed.
        limit: How many bytes may be copied to see what changes. Of frozen weights beyond, the norms are compared.
        previous: An earlier one, whose copies are taken over as far as torch's version counters tell that they hold.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        changed: ChangedTensors,
        copied: bool,
        compared: bool,
        limit: int = SPARE,
        previous: TensorSnapshot | None = None,
    ) -> None:
        self._changed, self._copied, self._limit = changed, copied, limit
        self._tensors = [(name, t) for name, t in named if t.layout is torch.strided and not t.is_inference()]
        self._states = self._now()
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        left_over: list[Tensor] = []
        kept = {} if previous is None else previous._valid()
        for _, tensor in self._tensors:
            if tensor in changed or (copied and tensor.nbytes <= limit):
                limit -= 0 if tensor in changed else tensor.nbytes
                self._copies[id(tensor)] = kept.get(id(tensor)) or (tensor.data, tensor.detach().clone())
            else:
                left_over.append(tensor)
        self._norms = _norms(left_over) if compared else []
        self._left_over = left_over
        self._compared = compared

    def _now(self) -> list[tuple[int, int, bool]]:
        return [(t._version, t.data_ptr(), t.requires_grad) for _, t in self._tensors]

    def _valid(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Copies that are still those of now."""
        pairs = zip(self._tensors, self._states, self._now(), strict=True)
        same = {id(t) for (_, t), before, now in pairs if before[:2] == now[:2] and t not in self._changed}
        return {key: pair for key, pair in self._copies.items() if key in same}

    def again(self, compared: bool) -> TensorSnapshot:
        """A snapshot of the same tensors now: this one if none has changed, as far as torch tells.

        Args:
            compared: See the class; of one that compares nothing is taken over.
        """
        trusted = not (compared or self._compared)
        if trusted and self._now() == self._states and not any(t in self._changed for _, t in self._tensors):
            return self
        previous = self if trusted else None
        return TensorSnapshot(self._tensors, self._changed, self._copied, compared, self._limit, previous)

    def restore(self) -> None:
        """Put back what can be."""
        suspects = self._suspects() if self._compared else set()
        for (_, tensor), (version, place, needs_gradient) in zip(self._tensors, self._states, strict=True):
            if tensor.requires_grad != needs_gradient and tensor.is_leaf:
                tensor.requires_grad_(needs_gradient)
            saved = self._copies.get(id(tensor))
            if saved is None:
                continue
            where, values = saved
            moved = tensor.data_ptr() != place
            if moved:
                tensor.data = where
            if tensor in self._changed:
                if not _same(tensor, values):
                    _put(tensor, values)
            elif moved or tensor._version != version or (id(tensor) in suspects and not _same(tensor, values)):
                self._changed.add(tensor)
                _put(tensor, values)

    def _suspects(self) -> set[int]:
        """Which tensors may differ from their copies; the device is asked once."""
        pairs = [(t, self._copies[id(t)][1]) for _, t in self._tensors if id(t) in self._copies]
        alike = [(t, c) for t, c in pairs if t.is_floating_point() and t.numel() and t.shape == c.shape]
        found = {id(t) for t, _ in pairs} - {id(t) for t, _ in alike}
        if alike:
            differences = torch._foreach_sub([t.detach() for t, _ in alike], [c for _, c in alike])
            sizes = torch._foreach_norm(differences, torch.inf)
            apart = torch.stack([size.to(sizes[0]) for size in sizes]).ne(0).tolist()  # nan, too
            found |= {id(t) for (t, _), differs in zip(alike, apart, strict=True) if differs}
        return found

    def refuse_lost(self) -> None:
        """Refuse what `restore` can't put back.

        Raises:
            LostStateError: With its name.
        """
        for (name, tensor), (version, place, _) in zip(self._tensors, self._states, strict=True):
            if id(tensor) not in self._copies and (tensor._version, tensor.data_ptr()) != (version, place):
                raise _lost(name)
        if self._norms and _norms(self._left_over) != self._norms:
            raise _lost("a frozen weight")


def _put(tensor: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(values)


def _lost(name: str) -> LostStateError:
    return LostStateError(
        f"changes the tensor {name!r} in place",
        "change it in `on_train_batch_end`, which runs once, or make it a buffer",
    )


def _same(tensor: Tensor, values: Tensor) -> bool:
    """Bit for bit, also where they are nan."""
    if tensor.shape != values.shape or tensor.dtype != values.dtype:
        return False
    return torch.equal(tensor, values) or torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(values))


def _norms(tensors: Sequence[Any]) -> list[str]:
    floating = [t.detach() for t in tensors if t.is_floating_point()]
    return [float(norm).hex() for norm in torch._foreach_norm(floating)] if floating else []

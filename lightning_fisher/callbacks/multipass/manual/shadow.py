"""Weights and buffers that stand in for a module's own while a step is run again.

The live step is under way: its graph refers to the weights, and what is changed in place looks modified to it, even if
it is put back bit for bit. So the extra passes get tensors of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError


class _Holder(nn.Module):
    """The shadows as a module: whose buffers are put back after each pass, and whose devices count."""

    def __init__(self, parameters: Sequence[nn.Parameter], buffers: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters)
        for index, buffer in enumerate(buffers):
            self.register_buffer(f"buffer_{index}", buffer)


class Shadows:
    """Copies of parameters and of all buffers as they are now, at the beginning of a step.

    Args:
        trainer: Whose optimizers get the copies to see, too.
        module: The module.
        parameters: Those to be copied; the others are used as they are.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, parameters: Sequence[nn.Parameter]) -> None:
        self._groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._own = {id(p): p for p in parameters}
        self._copies = {id(p): nn.Parameter(p.detach().clone(), p.requires_grad) for p in parameters}
        self._start = {key: copy.detach().clone() for key, copy in self._copies.items()}
        self._attributes = {id(p): dict(vars(p)) for p in parameters if vars(p)}
        self._optimizers = [optimizer for optimizer in trainer.optimizers if optimizer.state]
        self._gradients = {id(p): None if p.grad is None else p.grad.detach().clone() for p in parameters}
        buffers = {id(b): b for b in module.buffers()}
        self._own_buffers = [b for b in buffers.values() if not b.is_inference()]
        self._buffers = {key: buffer.detach().clone() for key, buffer in buffers.items()}
        # By place: a step may put another buffer there.
        copies: dict[int, Tensor] = {**self._buffers, **self._copies}
        tables = [(owner, held) for owner in module.modules() for held in _held(owner)]
        self._places: list[tuple[nn.Module, dict[str, Any], str, Tensor]] = [
            (owner, held, name, copies[id(tensor)])
            for owner, held in tables
            for name, tensor in held.items()
            if tensor is not None and id(tensor) in copies
        ]
        self.holder = _Holder(list(self._copies.values()), list(self._buffers.values()))

    def of(self, parameter: Tensor) -> nn.Parameter:
        """The copy of a parameter."""
        return self._copies[id(parameter)]

    def items(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """``(parameter, its copy)``."""
        yield from ((p, self._copies[key]) for key, p in self._own.items())

    def reset(self) -> None:
        """The copies' values as at the beginning."""
        with torch.no_grad():
            for key, copy in self._copies.items():
                copy.copy_(self._start[key])

    @contextmanager
    def settled(self, perturbed: Sequence[Tensor], when: Callable[[], bool]) -> Iterator[None]:
        """Before a submodule uses them, move its ``perturbed`` weights as far from the live ones as they began apart.

        What the live step made of its weights by other ways than its optimizers (it clamps them, or climbs) would else
        be done to the perturbed ones: the penalty is that of the loss at the weights as they are now.

        Args:
            perturbed: The parameters that are perturbed.
            when: Whether the step has come to the loss in question.
        """
        kept = {id(p) for p in perturbed}
        apart = {key: self._copies[key].detach() - self._start[key] for key in kept}
        names = {id(self._copies[key]): key for key in kept}
        handles, done = [], set()

        def settle(owner: nn.Module, *args: Any) -> None:
            if owner in done or not when():
                return
            done.add(owner)
            with torch.no_grad():
                for copy in owner._parameters.values():
                    key = names.get(id(copy))
                    if copy is not None and key is not None:
                        now = self._own[key].detach() + apart[key]
                        if not torch.equal(copy, now):
                            copy.copy_(now)

        try:
            for owner in {id(o): o for o, held, *_ in self._places if held is o._parameters}.values():
                handles.append(owner.register_forward_pre_hook(settle))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _versions_of(self) -> tuple[list[int], list[int]]:
        """Of the live weights and buffers, which a pass on the copies leaves alone."""
        return [p._version for p in self._own.values()], [b._version for b in self._own_buffers]

    @contextmanager
    def in_place(self, perturbed: Sequence[Tensor]) -> Iterator[None]:
        """Run the module on the copies: those of ``perturbed`` as they are, the others as at the beginning.

        Raises:
            LostStateError: If the pass changed a weight itself, by a way around the module and its optimizers.
        """
        kept = {id(p) for p in perturbed}
        entry = {key: copy.detach().clone() for key, copy in self._copies.items() if key in kept}
        with torch.no_grad():
            for key, copy in self._copies.items():
                if key not in kept:
                    copy.copy_(self._start[key])
                copy.requires_grad_(self._own[key].requires_grad)
                gradient = self._gradients[key]
                copy.grad = None if gradient is None else gradient.clone()
        for key, attributes in self._attributes.items():
            vars(self._copies[key]).clear()
            vars(self._copies[key]).update(attributes)
        states = [
            (optimizer.state, copy, optimizer.state[own])
            for optimizer in self._optimizers
            for own, copy in self.items()
            if own in optimizer.state
        ]
        versions, of_buffers = self._versions_of()
        before = [(group, group["params"]) for group in self._groups]
        tensors = [held[name] for _, held, name, _ in self._places]
        try:
            for owner, held, name, replacement in self._places:
                _set(owner, held, name, replacement)
            for state, copy, found in states:
                state[copy] = found
            for group, parameters in before:
                group["params"] = [self._copies.get(id(p), p) for p in parameters]
            yield
        finally:
            for (owner, held, name, _), tensor in zip(self._places, tensors, strict=True):
                _set(owner, held, name, tensor)
            for group, parameters in before:
                group["params"] = parameters
            for state, copy, _ in states:
                state.pop(copy, None)
            with torch.no_grad():
                for key, values in entry.items():
                    self._copies[key].copy_(values)
        versions_now, of_buffers_now = self._versions_of()
        if of_buffers_now != of_buffers:
            raise LostStateError(
                "changes a buffer through a view that it holds of it", "change the buffer itself, by its name"
            )
        if versions_now != versions:
            raise LostStateError(
                "changes weights that it holds in a list of its own",
                "reach them through the module's `parameters()` or the optimizer's `param_groups`",
            )


def _held(owner: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables of parameters and of buffers of one module."""
    return owner._parameters, owner._buffers


def _set(owner: nn.Module, held: dict[str, Any], name: str, tensor: Any) -> None:
    held[name] = tensor
    if isinstance(owner, nn.RNNBase):  # which keeps a second list of its weights
        owner._flat_weights = [getattr(owner, key, None) for key in owner._flat_weights_names]

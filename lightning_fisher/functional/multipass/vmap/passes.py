"""Losses and gradients of all sub-batches in one pass, and those of one of them in an ordinary pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from lightning_fisher.functional.evaluation.graph import refuse_reduced_precision
from lightning_fisher.functional.evaluation.state.random_state import RandomStateSnapshot
from lightning_fisher.functional.multipass.vmap.stacked import StackedBatches, VmapError


class Found(NamedTuple):
    """Losses ``[M]``, gradients ``[M, …]``, and which of these there are: zeros stand for the others."""

    losses: Tensor
    gradients: list[Tensor]
    used: list[bool]


class Passes:
    """``[M]`` losses and their ``[M, …]`` gradients, at one ``w`` or at M of them."""

    def __init__(
        self,
        loss: Callable[[Any], Tensor],
        batches: StackedBatches,
        parameters: Sequence[nn.Parameter],
        module: nn.Module,
    ) -> None:
        if any(isinstance(submodule, torch.jit.ScriptModule) for submodule in module.modules()):
            raise VmapError("part of the module is scripted or traced")
        self._module = _Loss(module, loss)
        self._batches = batches
        # Every place a tensor is held at, once: where a module is held at two, `functional_call` that finds the tied
        # places by itself doesn't put its tensors back (torch 2.14).
        self._places: defaultdict[int, list[str]] = defaultdict(list)
        self._buffers: dict[int, Tensor] = {}
        owners: defaultdict[int, set[int]] = defaultdict(set)  # of a storage
        for prefix, owner in self._module.named_modules():
            for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
                if tensor is None:
                    continue
                self._places[id(tensor)].append(f"{prefix}.{name}")
                if tensor.layout is torch.strided and tensor.numel():
                    owners[tensor.untyped_storage().data_ptr()].add(id(tensor))
                if name in owner._buffers:
                    self._buffers[id(tensor)] = tensor
        if not all(id(parameter) in self._places for parameter in parameters):
            raise VmapError("a parameter is not one of the module's")
        if any(len(tensors) > 1 for tensors in owners.values()):
            raise VmapError("parameters or buffers share memory")
        self._parameters = list(parameters)

    @property
    def structure(self) -> Any:
        """What rules of vmap are chosen by: shapes and dtypes, modes."""
        tensors = [*self._batches.tensors, *self._parameters, *self._buffers.values()]
        modes = tuple(submodule.training for submodule in self._module.modules())
        return self._batches.count, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors), modes

    def ordinary(self, weights: Sequence[Tensor], index: int) -> list[Tensor] | None:
        """The gradients of one sub-batch at its weights from an ordinary pass; None if that draws random numbers."""
        values = [weight.detach().clone().requires_grad_() for weight in weights]
        here = self._exchanged([buffer.clone() for buffer in self._buffers.values()], values)
        batch = self._batches.batch([tensor[index] for tensor in self._batches.stacked()])
        before = RandomStateSnapshot({value.device for value in values})
        loss = functional_call(self._module, here, (batch,), tie_weights=False)
        if not before.unchanged():
            return None
        return list(torch.autograd.grad(loss.sum(), values, allow_unused=True, materialize_grads=True))

    def _exchanged(self, buffers: Sequence[Tensor], values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Tensors in the place of the module's, under all their names."""
        here: dict[str, Tensor] = {}
        for key, buffer in zip(self._buffers, buffers, strict=True):
            here.update(dict.fromkeys(self._places[key], buffer))
        for parameter, value in zip(self._parameters, values, strict=True):
            here.update(dict.fromkeys(self._places[id(parameter)], value))
        return here

    def run(self, weights: Sequence[Tensor] | None) -> Found:
        """Of all sub-batches, at one ``w`` or at weights of their own."""
        at = [p.detach().clone() for p in self._parameters] if weights is None else list(weights)
        used: set[int] = set()

        def one(values: list[Tensor], buffers: list[Tensor], tensors: list[Tensor]) -> Tensor:
            for index, value in enumerate(values):
                value.register_hook(lambda gradient, index=index: used.add(index))
            here = self._exchanged(buffers, values)
            found: Tensor = functional_call(self._module, here, (self._batches.batch(tensors),), tie_weights=False)
            if weights is None:
                refuse_reduced_precision(found)
            return found.reshape(()) if found.numel() == 1 else found

        try:
            buffers = [b.expand(self._batches.count, *b.shape).clone() for b in self._buffers.values()]
            gradients, losses = vmap(
                grad_and_value(one), in_dims=(None if weights is None else 0, 0, 0), randomness="different"
            )(at, buffers, self._batches.stacked())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise VmapError(str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")) from error
        if losses.requires_grad:
            raise VmapError("the loss reaches a parameter by another way than its module")
        return Found(losses.detach(), [g.detach() for g in gradients], [index in used for index in range(len(at))])


class _Loss(nn.Module):
    """A function that runs a module, as a module: `functional_call` exchanges what is inside."""

    def __init__(self, module: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = loss

    def forward(self, batch: Any) -> Tensor:
        return self.function(batch)

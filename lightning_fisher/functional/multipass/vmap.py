"""The sub-batches of Algorithm 1 in one pass by ``torch.func.vmap``, instead of M small ones.

A GPU takes as long to be told of a pass of 16 samples as of one of 128; with small networks that is all the time there
is. The price is what vmap asks of a loss, the memory of M gradients four times over, and weights that differ from
sub-batch to sub-batch: on a CPU a loop is faster for all but the smallest networks (`benchmarks`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_fisher.functional.evaluation.graph import refuse_reduced_precision, require_dependence
from lightning_fisher.functional.evaluation.module_state import (
    BufferSnapshot,
    RandomStateSnapshot,
    refuse_renormalized_embeddings,
)
from lightning_fisher.functional.evaluation.precision import (
    device_types,
    full_precision,
    require_full_precision,
)
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.divergence import DivergenceAccumulator
from lightning_fisher.functional.multipass.gradients import finite_or_left_out
from lightning_fisher.functional.multipass.loop import Penalty

ExtraPass = Callable[[], AbstractContextManager[None]]
KEPT = 8  # structures of batches for a module
GRADIENT = {torch.float32: 1e-2, torch.float64: 1e-6}  # relative difference of gradients that may be rounding


class VmapError(ValueError):
    """A loss, or a batch, that can't be evaluated for all sub-batches in one pass."""


class UnequalSizesError(VmapError):
    """Sub-batches that differ in size only: the last batch of an epoch."""


class _Loss(nn.Module):
    """A function that runs a module, as a module: `functional_call` exchanges what is inside."""

    def __init__(self, module: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = loss

    def forward(self, batch: Any) -> Tensor:
        return self.function(batch)


class StackedBatches:
    """Sub-batches of one structure and one shape, with a dimension for the sub-batch in front.

    Attributes:
        count: M.

    Raises:
        VmapError: If they differ in more than the values of their tensors.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self.count = len(batches)
        flat = [tree_flatten(batch) for batch in batches]
        self._spec = flat[0][1]
        if any(spec != self._spec for _, spec in flat):
            raise VmapError("the sub-batches differ in structure")
        self._columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
        for leaves in self._columns:
            kinds = {type(leaf).__name__ for leaf in leaves}
            if all(isinstance(leaf, Tensor) for leaf in leaves):
                if len({(leaf.dtype, leaf.device, leaf.layout, leaf.ndim) for leaf in leaves}) > 1:
                    raise VmapError("the sub-batches differ in the kind of their tensors")
                if len({leaf.shape for leaf in leaves}) > 1:
                    raise UnequalSizesError("the sub-batches differ in size")
            elif not all(isinstance(leaf, (bool, int, float, str, type(None))) for leaf in leaves):
                raise VmapError(f"the sub-batches hold objects that can't be stacked ({', '.join(sorted(kinds))})")
            elif any(leaf != leaves[0] for leaf in leaves):
                raise VmapError(f"the sub-batches differ in what isn't a tensor ({', '.join(sorted(kinds))})")

    @property
    def tensors(self) -> list[Tensor]:
        """Of the first sub-batch, uncopied."""
        return [leaves[0] for leaves in self._columns if isinstance(leaves[0], Tensor)]

    def stacked(self) -> list[Tensor]:
        """A fresh copy of the tensors, ``[M, …]`` each: a loss may change its batch."""
        return [torch.stack(leaves).detach() for leaves in self._columns if isinstance(leaves[0], Tensor)]

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """The batch of one sub-batch, with its tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaves[0], Tensor) else leaves[0] for leaves in self._columns]
        return tree_unflatten(leaves, self._spec)


def penalty_by_vmap(
    loss: Callable[[Any], Tensor],
    batches: Sequence[Any],
    parameters: Sequence[nn.Parameter],
    *,
    difference: FiniteDifference,
    weight: float | Sequence[float],
    module: nn.Module,
    extra_pass: ExtraPass = nullcontext,
    loss_fn: Any = None,
) -> Penalty:
    """`penalty_of_losses` of sub-batches of one shape, in two passes (three): one at ``w``, one at all ends of steps.

    The same numbers up to rounding: some of torch's own rules for vmap are wrong, so that the first call for a module
    and sub-batches of one structure compares one sub-batch with ordinary passes, in each place, unless the loss draws
    random numbers. Random numbers (dropout masks) are drawn for all sub-batches at once, others than
    in a loop, the same ones in all passes.

    Args:
        loss: Runs the module on a sub-batch and returns the scalar mean loss; called once a pass, with batched tensors.
        batches: M sub-batches of one structure and shape.
        parameters: The parameters to differentiate with respect to; they are not moved.
        difference: The method: where the passes are.
        weight: Weight of each sub-batch in ``R_α``: one for all of them, or one each; zero: it is left out.
        module: Whose buffers and devices' random state are as before afterwards.
        extra_pass: Surrounds every pass: restores what else the loss touches.
        loss_fn: What ``loss`` uses besides the module; with another one the comparison is made again.

    Returns:
        A `Penalty`, without ``loss`` and ``loss_gradient``.

    Raises:
        VmapError: If the loss or the batches can't be evaluated together, or not rightly.
        ValueError: If a parameter is narrower than float32.
    """
    parameters = list(parameters)
    require_full_precision(parameters, "the penalty")
    refuse_renormalized_embeddings(module)
    if len({(p.dtype, p.device) for p in parameters}) > 1:
        raise VmapError("the parameters differ in dtype or device")
    passes = _Passes(loss, StackedBatches(batches), parameters, module)
    types = device_types(module)
    before, kept = RandomStateSnapshot({p.device for p in parameters}), _Attributes(module)
    try:
        with torch.compiler.set_stance("force_eager"), full_precision(types):
            structure = passes.structure
            new = _COMPARED.is_new(module, structure, loss_fn)

            last = len(batches) - 1

            def compare(found: _Found, weights: Sequence[Tensor]) -> None:
                if new:
                    kept.restore()
                    before.restore()
                    with extra_pass(), torch.autograd.set_detect_anomaly(False):
                        passes.compare(found, weights, last)

            with extra_pass():
                here = passes.run(None)
            require_dependence(any(here.used))
            compare(here, parameters)
            factors = difference.alpha if difference.step == "fixed" else _steps_of_length(difference.alpha, here)
            found: list[_Found] = []
            for place in difference.places:
                if place == 0:
                    found.append(here)
                    continue
                stepped = _stepped(parameters, here.gradients, place, factors)
                kept.restore()
                before.restore()
                start = [rows[last].clone() for rows in stepped] if new else []  # a loss may move its weights
                with extra_pass(), torch.autograd.set_detect_anomaly(False):
                    found.append(passes.run(stepped))
                del stepped
                compare(found[-1], start)
            if new:
                _COMPARED.add(module, structure, loss_fn)
            parts = _Weighted(weight, len(here.losses))
            spread, moved = DivergenceAccumulator(), [g for g, u in zip(here.gradients, here.used, strict=True) if u]
            rows = torch.cat([g.reshape(len(g), -1) for g in moved], 1)
            for index, row in enumerate(rows):
                if parts.counts(index):
                    spread.add([row])
            upper, lower = found
            lengths = None if difference.step == "fixed" else torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
            value = parts.total(_times(upper.losses.double() - lower.losses.double(), lengths))
            total: list[Tensor | None] = [
                parts.total(_times(torch.sub(g, h), lengths)) if u or v else None
                for g, h, u, v in zip(upper.gradients, lower.gradients, upper.used, lower.used, strict=True)
            ]
    finally:
        kept.restore()
        before.restore()
    penalty, gradient = finite_or_left_out(value, tuple(total))
    return Penalty(penalty, gradient, spread.compute())


class _Compared:
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


_COMPARED = _Compared()


def _reference(loss_fn: Any) -> Any:
    try:
        return ref(loss_fn)
    except TypeError:  # a built-in function, None
        return loss_fn


class _Found(NamedTuple):
    """Losses ``[M]``, gradients ``[M, …]``, and which of these there are: zeros stand for the others."""

    losses: Tensor
    gradients: list[Tensor]
    used: list[bool]


def _steps_of_length(alpha: float, here: _Found) -> Tensor:
    """What each gradient is multiplied by to be of length α, ``[M]`` float64; zero where the gradient is."""
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in here.gradients])
    lengths = torch.linalg.vector_norm(norms, dim=0)
    return torch.where(lengths > 0, alpha / lengths, 0.0)


def _stepped(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], place: float, factors: float | Tensor
) -> list[Tensor]:
    """``w`` moved to a place on the step of every sub-batch, ``[M, …]``."""
    pairs = zip(parameters, gradients, strict=True)
    if isinstance(factors, Tensor):
        return [p.detach() + _times(g, place * factors) for p, g in pairs]
    return [torch.add(p.detach(), g, alpha=place * factors) for p, g in pairs]


def _times(values: Tensor, factors: Tensor | None) -> Tensor:
    """Every row times its factor."""
    return values if factors is None else values * factors.to(values).view(-1, *[1] * (values.ndim - 1))


class _Weighted:
    """Sums over the sub-batches."""

    def __init__(self, weight: float | Sequence[float], count: int) -> None:
        self._weights = [float(weight)] * count if isinstance(weight, (int, float)) else list(weight)
        self._same = self._weights[0] if len(set(self._weights)) == 1 else None

    def counts(self, index: int) -> bool:
        """Whether a sub-batch is part of the sum."""
        return self._weights[index] != 0

    def total(self, values: Tensor) -> Tensor:
        """``Σ_i w_i values_i``; what isn't part of the sum may be anything."""
        if self._same is not None:
            return values.sum(0).mul_(self._same)
        weights = values.new_tensor(self._weights).view(-1, *[1] * (values.ndim - 1))
        return (values * weights).masked_fill(weights == 0, 0.0).sum(0)


class _Attributes:
    """The tensors that the modules of a tree hold: what a pass under vmap leaves there is of no use afterwards."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = BufferSnapshot(module)
        self._held = [(owner, set(owner._buffers), dict(vars(owner))) for owner in module.modules()]

    def restore(self) -> None:
        """Put back attributes and buffers; those that are new go."""
        self._buffers.restore()
        for owner, buffers, attributes in self._held:
            for name in owner._buffers.keys() - buffers:
                del owner._buffers[name]
            for name, value in list(vars(owner).items()):
                if isinstance(value, Tensor) and value is not attributes.get(name):
                    if name in attributes:
                        vars(owner)[name] = attributes[name]
                    else:
                        del vars(owner)[name]


class _Passes:
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

    def compare(self, found: _Found, weights: Sequence[Tensor], index: int) -> None:
        """Compare one sub-batch with an ordinary pass, unless that draws random numbers.

        Args:
            found: Of all sub-batches.
            weights: Of this one.
            index: Which.

        Raises:
            VmapError: If the gradients differ by more than rounding.
        """
        values = [weight.detach().clone().requires_grad_() for weight in weights]
        here: dict[str, Tensor] = {}
        for key, buffer in self._buffers.items():
            here.update(dict.fromkeys(self._places[key], buffer.clone()))
        for parameter, value in zip(self._parameters, values, strict=True):
            here.update(dict.fromkeys(self._places[id(parameter)], value))
        batch = self._batches.batch([tensor[index] for tensor in self._batches.stacked()])
        before = RandomStateSnapshot({value.device for value in values})
        loss = functional_call(self._module, here, (batch,), tie_weights=False)
        if not before.unchanged():
            return
        expected = torch.autograd.grad(loss.sum(), values, allow_unused=True, materialize_grads=True)
        seen = torch.cat([gradient[index].flatten() for gradient in found.gradients])
        right = torch.cat([gradient.flatten() for gradient in expected])
        difference, size = (seen - right).norm(), torch.maximum(seen.norm(), right.norm())
        if bool(torch.isfinite(size)) and bool(difference > GRADIENT[right.dtype] * size):
            raise VmapError(
                "its gradients there are not those of an ordinary pass (relative difference "
                f"{float(difference / size):.1e})"
            )

    def run(self, weights: Sequence[Tensor] | None) -> _Found:
        """Of all sub-batches, at one ``w`` or at weights of their own."""
        at = [p.detach().clone() for p in self._parameters] if weights is None else list(weights)
        used: set[int] = set()

        def one(values: list[Tensor], buffers: list[Tensor], tensors: list[Tensor]) -> Tensor:
            here: dict[str, Tensor] = {}
            for key, buffer in zip(self._buffers, buffers, strict=True):
                here.update(dict.fromkeys(self._places[key], buffer))
            for index, (parameter, value) in enumerate(zip(self._parameters, values, strict=True)):
                value.register_hook(lambda gradient, index=index: used.add(index))
                here.update(dict.fromkeys(self._places[id(parameter)], value))
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
        return _Found(losses.detach(), [g.detach() for g in gradients], [index in used for index in range(len(at))])

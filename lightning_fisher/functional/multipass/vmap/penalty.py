"""Algorithm 1 with the passes of all sub-batches at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.graph import require_dependence
from lightning_fisher.functional.evaluation.precision import (
    device_types,
    full_precision,
    require_full_precision,
)
from lightning_fisher.functional.evaluation.state.attributes import Attributes
from lightning_fisher.functional.evaluation.state.buffers import BufferSnapshot
from lightning_fisher.functional.evaluation.state.layers import refuse_renormalized_embeddings
from lightning_fisher.functional.evaluation.state.random_state import RandomStateSnapshot
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.divergence import DivergenceAccumulator
from lightning_fisher.functional.multipass.gradients import finite_or_left_out
from lightning_fisher.functional.multipass.loop import Penalty
from lightning_fisher.functional.multipass.vmap.comparison import COMPARED, compare
from lightning_fisher.functional.multipass.vmap.passes import Found, Passes
from lightning_fisher.functional.multipass.vmap.stacked import StackedBatches, VmapError

ExtraPass = Callable[[], AbstractContextManager[None]]


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
    passes = Passes(loss, StackedBatches(batches), parameters, module)
    types = device_types(module)
    before, kept = RandomStateSnapshot({p.device for p in parameters}), _Held(module)
    try:
        with torch.compiler.set_stance("force_eager"), full_precision(types):
            structure = passes.structure
            new = COMPARED.is_new(module, structure, loss_fn)

            last = len(batches) - 1

            def verify(found: Found, weights: Sequence[Tensor]) -> None:
                if new:
                    kept.restore()
                    before.restore()
                    with extra_pass(), torch.autograd.set_detect_anomaly(False):
                        compare(passes, found, weights, last)

            with extra_pass():
                here = passes.run(None)
            require_dependence(any(here.used))
            verify(here, parameters)
            factors = difference.alpha if difference.step == "fixed" else _steps_of_length(difference.alpha, here)
            found: list[Found] = []
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
                verify(found[-1], start)
            if new:
                COMPARED.add(module, structure, loss_fn)
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


def _steps_of_length(alpha: float, here: Found) -> Tensor:
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


class _Held:
    """What the modules of a tree hold: a pass under vmap leaves tensors there that are of no use afterwards."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers, self._attributes = BufferSnapshot(module), Attributes(module)
        self._names = [(owner, set(owner._buffers)) for owner in module.modules()]

    def restore(self) -> None:
        """Put back attributes and buffers; those that are new go."""
        self._buffers.restore()
        self._attributes.restore()
        for owner, names in self._names:
            for name in owner._buffers.keys() - names:
                del owner._buffers[name]

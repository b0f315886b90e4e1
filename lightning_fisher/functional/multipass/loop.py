"""The passes of Algorithm 1 over losses that are given as functions: at ``w`` and at ``w − α g_i``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.module_state import (
    BufferSnapshot,
    RandomStateSnapshot,
    dense,
    refuse_renormalized_embeddings,
)
from lightning_fisher.functional.evaluation.precision import (
    RefuseAutocast,
    device_types,
    full_precision,
    require_full_precision,
)
from lightning_fisher.functional.multipass.divergence import Divergence, DivergenceAccumulator

Gradient = tuple[Tensor | None, ...]


class Penalty(NamedTuple):
    """What one evaluation of the regularizer gives.

    Attributes:
        value: ``R_α``, float64 scalar; ``nan`` where it, or an entry of its gradient, isn't finite.
        gradient: ``∇R_α``, one tensor a given parameter; ``None`` where the loss doesn't depend on it. Zero throughout
            where ``value`` is ``nan``: what is added to a step is finite or nothing.
        divergence: Spread of the gradients ``g_i`` of the perturbed sub-batches.
        loss: ``Σ_i s_i L(B_i, w)`` with the shares s of ``loss_shares``, float64 scalar; ``None`` without them.
        loss_gradient: ``Σ_i s_i g_i``, as ``gradient``; ``None`` without ``loss_shares``.
    """

    value: Tensor
    gradient: Gradient
    divergence: Divergence
    loss: Tensor | None = None
    loss_gradient: Gradient | None = None


def penalty_of_losses(
    losses: Sequence[Callable[[], Tensor]],
    parameters: Sequence[nn.Parameter],
    *,
    alpha: float,
    weights: Sequence[float],
    module: nn.Module,
    loss_shares: Sequence[float] | None = None,
    extra_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Penalty:
    """`penalty_gradient` of losses that are given as functions of nothing, one a sub-batch.

    Without ``loss_shares`` every pass is an extra one: buffers and random state are as before afterwards. With them the
    passes at ``w`` *are* the training pass of the batch: they move the buffers and the random state, once a part, and
    their gradients add up to the gradient of the loss; only the passes at ``w − α g_i`` are extra.

    Args:
        losses: Each runs the module on its sub-batch and returns the scalar mean loss; called once at ``w`` and, where
            its weight isn't zero, once at ``w − α g_i``.
        parameters: The parameters to differentiate with respect to; moved and put back.
        alpha: Length α of the step.
        weights: Weight of each sub-batch in ``R_α``: its share of the batch; zero: it isn't perturbed.
        module: Whose buffers are restored after every extra pass, and whose devices' random state.
        loss_shares: Share of each sub-batch in the batch, for the loss and its gradient; ``None``: neither is wanted.
        extra_pass: Surrounds every extra pass: restores what else the losses touch.

    Returns:
        A `Penalty`.

    Raises:
        ValueError: If a parameter is narrower than float32.
    """
    parameters = list(parameters)
    require_full_precision(parameters, "the penalty")
    refuse_renormalized_embeddings(module)
    devices = {p.device for p in parameters}
    types = device_types(module)
    live = loss_shares is not None
    shares = [0.0] * len(losses) if loss_shares is None else loss_shares
    values: list[Tensor] = []
    here_values: list[Tensor] = []
    total: list[Tensor | None] = [None] * len(parameters)
    loss_total: list[Tensor | None] = [None] * len(parameters)
    spread = DivergenceAccumulator()
    weights_now: list[Tensor] = list(parameters)
    originals = [p.detach().clone() for p in parameters]
    before = RandomStateSnapshot(devices)
    buffers = BufferSnapshot(module)
    first = True

    def evaluate(loss: Callable[[], Tensor]) -> tuple[Tensor, Gradient]:
        nonlocal first
        with RefuseAutocast(types) if first else nullcontext():  # the first pass tells
            value = loss()
        first = False
        # The loss may have frozen some of them by now, or be a constant.
        variables = [p for p in parameters if p.requires_grad and value.requires_grad]
        found = iter(torch.autograd.grad(value, variables, allow_unused=True) if variables else ())
        gradients = (next(found) if variables and p.requires_grad else None for p in parameters)
        return value.detach(), tuple(None if g is None else dense(g) for g in gradients)

    def evaluate_extra(loss: Callable[[], Tensor], afterwards: BufferSnapshot) -> tuple[Tensor, Gradient]:
        try:
            # What isn't finite at w − α g is left out below: no anomaly of the user's own step.
            with extra_pass(), torch.autograd.set_detect_anomaly(False):
                return evaluate(loss)
        finally:
            afterwards.restore()

    finished = False
    try:
        with torch.compiler.set_stance("force_eager"), full_precision(types):
            for loss, weight, share in zip(losses, weights, shares, strict=True):
                masks = RandomStateSnapshot(devices)
                if live and weight != 0:
                    buffers = BufferSnapshot(module)
                value, gradient = evaluate(loss) if live else evaluate_extra(loss, buffers)
                require_dependence(any(g is not None for g in gradient))
                if live:
                    here_values.append(value.double() * share)
                    _accumulate(loss_total, gradient, share)
                if weight == 0:
                    continue
                after = RandomStateSnapshot(devices)
                moved_on = buffers
                if live:  # both passes start from the same buffers, the next one from those of the training pass
                    moved_on = BufferSnapshot(module)
                    buffers.restore()
                moved = [(p, g) for p, g in zip(parameters, gradient, strict=True) if g is not None]
                spread.add([g for _, g in moved])
                with torch.no_grad():
                    torch._foreach_add_([p for p, _ in moved], [g for _, g in moved], alpha=-alpha)
                masks.restore()
                stepped_value, stepped_gradient = evaluate_extra(loss, moved_on)
                after.restore()
                with torch.no_grad():
                    torch._foreach_copy_(weights_now, originals)
                    values.append((value.double() - stepped_value.double()) * weight)
                    _accumulate(total, _difference(gradient, stepped_gradient), weight)
        finished = True
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights_now, originals)
        if not (live and finished):
            before.restore()
    penalty, gradient = finite_or_left_out(torch.stack(values).sum(), tuple(total))
    return Penalty(
        penalty,
        gradient,
        spread.compute(),
        torch.stack(here_values).sum() if live else None,
        tuple(loss_total) if live else None,
    )


def require_dependence(dependent: bool) -> None:
    """Refuse a loss without a gradient.

    Raises:
        ValueError: If it is not ``dependent`` on the parameters.
    """
    if not dependent:
        raise ValueError(
            "Expected a loss that depends on the trainable parameters, but none of them gets a gradient "
            "(activation checkpointing needs `use_reentrant=False`)."
        )


def finite_or_left_out(value: Tensor, gradient: Gradient) -> tuple[Tensor, Gradient]:
    """``R_α`` and ``∇R_α`` as they are, or ``nan`` and zeros if anything in them is infinite or undefined.

    Decided on the device: the host doesn't wait. ``gradient`` is changed in place.
    """
    with torch.no_grad():
        parts = [g for g in gradient if g is not None and g.numel()]
        largest = torch._foreach_norm(parts, torch.inf)  # nan where there is one
        finite = torch.isfinite(torch.stack([value, *(norm.to(value) for norm in largest)])).all()
        for part in parts:
            part.masked_fill_(~finite.to(part.device), 0.0)
        return torch.where(finite, value, torch.nan), gradient


def _accumulate(total: list[Tensor | None], gradient: Sequence[Tensor | None], weight: float) -> None:
    """``total += weight · gradient``, in place."""
    with torch.no_grad():
        sums, parts = [], []
        for i, part in enumerate(gradient):
            if part is None:
                continue
            old = total[i]
            if old is None:
                total[i] = part * weight
            else:
                sums.append(old)
                parts.append(part)
        if sums:
            torch._foreach_add_(sums, parts, alpha=weight)


def _difference(here: Gradient, there: Gradient) -> list[Tensor | None]:
    """``here − there``, where a gradient that isn't there is zero."""
    found: list[Tensor | None] = [
        g if g is not None else None if h is None else -h for g, h in zip(here, there, strict=True)
    ]
    both = [(i, g, h) for i, (g, h) in enumerate(zip(here, there, strict=True)) if g is not None and h is not None]
    if both:
        differences = torch._foreach_sub([g for _, g, _ in both], [h for *_, h in both])
        for (i, *_), difference in zip(both, differences, strict=True):
            found[i] = difference
    return found

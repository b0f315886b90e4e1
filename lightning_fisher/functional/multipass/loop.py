"""The passes of Algorithm 1 over losses that are given as functions: at ``w`` and at ``w − α g_i``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.graph import refuse_reduced_precision
from lightning_fisher.functional.evaluation.module_state import (
    BufferSnapshot,
    RandomStateSnapshot,
    dense,
    refuse_renormalized_embeddings,
)
from lightning_fisher.functional.evaluation.precision import (
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
    measured: MeasuredWeights | None = None,
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
        measured: What ``weights`` and ``loss_shares`` are multiplied by, known after the pass at ``w``: a loss may not
            weigh parts by their samples; ``None``: nothing.

    Returns:
        A `Penalty`.

    Raises:
        ValueError: If a parameter is narrower than float32.
    """
    parameters = list(parameters)
    require_full_precision(parameters, "the penalty")
    refuse_renormalized_embeddings(module)
    passes = _Passes(parameters, module, alpha, extra_pass)
    with passes.weights_kept():
        if loss_shares is None:
            sums = _extra_passes(passes, losses, weights, measured)
        else:
            sums = _training_passes(passes, losses, weights, loss_shares, measured)
    if measured is not None:
        sums.multiply(measured.scale())
    penalty, gradient = finite_or_left_out(sums.total(sums.values), tuple(sums.gradient))
    live = loss_shares is not None
    return Penalty(
        penalty,
        gradient,
        sums.spread.compute(),
        sums.total(sums.losses) if live else None,
        tuple(sums.loss_gradient) if live else None,
    )


class MeasuredWeights(Protocol):
    """What the parts weigh in the loss of the whole, where that isn't their number of samples."""

    def factor(self, index: int) -> float:
        """What the weight of a part is multiplied by, asked right after its pass at ``w``; 0: it is left out."""

    def scale(self) -> float:
        """What the sums are multiplied by in the end; nan: there is no loss."""


def _extra_passes(
    passes: _Passes,
    losses: Sequence[Callable[[], Tensor]],
    weights: Sequence[float],
    measured: MeasuredWeights | None,
) -> _Sums:
    """All passes are extra ones: buffers and random state are as before afterwards."""
    sums = _Sums(passes)
    before, buffers = RandomStateSnapshot(passes.devices), BufferSnapshot(passes.module)
    try:
        for i, (loss, weight) in enumerate(zip(losses, weights, strict=True)):
            masks = RandomStateSnapshot(passes.devices)
            here = passes.extra(loss, buffers, first=i == 0)
            require_dependence(any(g is not None for g in here.gradient))
            weight = weight if measured is None else weight * measured.factor(i)
            if weight != 0:
                sums.add(here, passes.stepped(loss, here, masks, buffers), weight)
    finally:
        before.restore()
    return sums


def _training_passes(
    passes: _Passes,
    losses: Sequence[Callable[[], Tensor]],
    weights: Sequence[float],
    shares: Sequence[float],
    measured: MeasuredWeights | None,
) -> _Sums:
    """The passes at ``w`` are those of training: buffers and random state move on, once a part."""
    sums = _Sums(passes)
    before = RandomStateSnapshot(passes.devices)
    try:
        for i, (loss, weight, share) in enumerate(zip(losses, weights, shares, strict=True)):
            masks = RandomStateSnapshot(passes.devices)
            buffers = BufferSnapshot(passes.module) if weight != 0 else None
            here = passes.at_weights(loss, first=i == 0)
            require_dependence(any(g is not None for g in here.gradient))
            factor = 1.0 if measured is None else measured.factor(i)
            if factor == 0:  # it has no labels
                continue
            sums.add_loss(here, share * factor)
            weight = weight * factor
            if buffers is not None:  # both passes start from the same buffers, the next part from those of training
                moved_on = BufferSnapshot(passes.module)
                buffers.restore()
                sums.add(here, passes.stepped(loss, here, masks, moved_on), weight)
    except BaseException:
        before.restore()
        raise
    return sums


class _Value(NamedTuple):
    """A loss and its gradient."""

    loss: Tensor
    gradient: Gradient


class _Passes:
    """Evaluates the losses of parts at ``w``, in the passes of training or in extra ones, and at ``w − α g``."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        module: nn.Module,
        alpha: float,
        extra_pass: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.parameters = parameters
        self.module = module
        self.devices = {p.device for p in parameters}
        self._types = device_types(module)
        self._alpha = alpha
        self._extra_pass = extra_pass
        self._weights: list[Tensor] = list(parameters)
        self._originals = [p.detach().clone() for p in parameters]

    @contextmanager
    def weights_kept(self) -> Iterator[None]:
        """Full precision inside; the parameters are ``w`` again afterwards, whatever happens."""
        try:
            with torch.compiler.set_stance("force_eager"), full_precision(self._types):
                yield
        finally:
            self._put_back()

    def at_weights(self, loss: Callable[[], Tensor], *, first: bool) -> _Value:
        """A pass at the weights as they are; the ``first`` of all shows in which precision it runs."""
        value = loss()
        if first:
            refuse_reduced_precision(value)
        # The loss may have frozen some of them by now, or be a constant.
        variables = [p for p in self.parameters if p.requires_grad and value.requires_grad]
        found = iter(torch.autograd.grad(value, variables, allow_unused=True) if variables else ())
        gradients = (next(found) if variables and p.requires_grad else None for p in self.parameters)
        return _Value(value.detach(), tuple(None if g is None else dense(g) for g in gradients))

    def extra(self, loss: Callable[[], Tensor], afterwards: BufferSnapshot, *, first: bool = False) -> _Value:
        """A pass that leaves nothing behind but the buffers of ``afterwards``."""
        try:
            # What isn't finite at w − α g is left out of the penalty: no anomaly of the user's own step.
            with self._extra_pass(), torch.autograd.set_detect_anomaly(False):
                return self.at_weights(loss, first=first)
        finally:
            afterwards.restore()

    def stepped(
        self, loss: Callable[[], Tensor], here: _Value, masks: RandomStateSnapshot, afterwards: BufferSnapshot
    ) -> _Value:
        """The extra pass at ``w − α g``, with the random numbers of the pass at ``w``."""
        after = RandomStateSnapshot(self.devices)
        moved = [(p, g) for p, g in zip(self.parameters, here.gradient, strict=True) if g is not None]
        with torch.no_grad():
            torch._foreach_add_([p for p, _ in moved], [g for _, g in moved], alpha=-self._alpha)
        masks.restore()
        found = self.extra(loss, afterwards)
        after.restore()
        self._put_back()
        return found

    def _put_back(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._originals)


class _Sums:
    """What the parts add up to."""

    def __init__(self, passes: _Passes) -> None:
        self._zero = torch.zeros((), dtype=torch.float64, device=passes.parameters[0].device)
        self.values: list[Tensor] = []
        self.gradient: list[Tensor | None] = [None] * len(passes.parameters)
        self.losses: list[Tensor] = []
        self.loss_gradient: list[Tensor | None] = [None] * len(passes.parameters)
        self.spread = DivergenceAccumulator()
        self._parameters = passes.parameters

    def add(self, here: _Value, there: _Value, weight: float) -> None:
        """A part of the penalty."""
        pairs = zip(here.gradient, self._parameters, strict=True)
        self.spread.add([torch.zeros_like(p) if g is None else g for g, p in pairs])  # parts may use others each
        with torch.no_grad():
            self.values.append((here.loss.double() - there.loss.double()) * weight)
            _accumulate(self.gradient, _difference(here.gradient, there.gradient), weight)

    def total(self, values: list[Tensor]) -> Tensor:
        """Sum of scalars, of which there may be none."""
        return torch.stack(values).sum() if values else self._zero

    def multiply(self, factor: float) -> None:
        """Multiply everything; by nan where the loss of the whole is none."""
        if factor == 1:
            return
        if math.isnan(factor):
            self.values.append(self._zero * math.nan)
            self.losses.append(self._zero * math.nan)
        for total in (self.values, self.losses, self.gradient, self.loss_gradient):
            parts = [part for part in total if part is not None]
            if parts:
                torch._foreach_mul_(parts, factor)

    def add_loss(self, here: _Value, share: float) -> None:
        """A part of the loss."""
        self.losses.append(here.loss.double() * share)
        _accumulate(self.loss_gradient, here.gradient, share)


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
        largest = torch._foreach_norm(parts, torch.inf) if parts else ()  # nan where there is one
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

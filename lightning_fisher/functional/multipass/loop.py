"""The passes of a method over losses that are given as functions, one a sub-batch: what they add up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.divergence import Divergence, DivergenceAccumulator
from lightning_fisher.functional.multipass.gradients import Gradient, accumulate, finite_or_left_out
from lightning_fisher.functional.multipass.passes import Evaluation, Loss, Method, Passes, SubBatch, Surround


class Penalty(NamedTuple):
    """What one evaluation of a method gives.

    Attributes:
        value: The penalty (``R_α``), float64 scalar; ``nan`` where it, or an entry of its gradient, isn't finite.
        gradient: Its gradient, one tensor a given parameter; ``None`` where it doesn't depend on it. Zero throughout
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


class Context(NamedTuple):
    """What a method is to know of the sub-batches beside their losses.

    Attributes:
        names: Of the parameters; empty: their numbers.
        seeds: One a sub-batch, of what a method draws at random; empty: their numbers.
        share: Takes the gradient at ``w`` of this process and returns that of all that share the sub-batch.
        divergence: Whether the spread of the gradients is wanted.
        attributes: Whether what modules keep in attributes is looked after, see `Passes`.
        precise: Whether the passes run in float32 or better, see `Passes`.
    """

    names: Sequence[str] = ()
    seeds: Sequence[int] = ()
    share: Callable[[Evaluation], Evaluation] | None = None
    divergence: bool = True
    attributes: bool = False
    precise: bool = True


def penalty_of_losses(
    losses: Sequence[Loss],
    parameters: Sequence[nn.Parameter],
    *,
    alpha: float | None = None,
    weights: Sequence[float],
    module: nn.Module,
    loss_shares: Sequence[float] | None = None,
    extra_pass: Surround = nullcontext,
    measured: MeasuredWeights | None = None,
    method: Method | None = None,
    context: Context | None = None,
) -> Penalty:
    """What a method adds to the mean of losses that are given as functions of nothing, one a sub-batch.

    ``Σ_i w_i m(B_i)`` with the weights w and the method m: a function of a `SubBatch` that returns an `Evaluation`.

    Without ``loss_shares`` every pass is an extra one: buffers and random state are as before afterwards. With them the
    passes at ``w`` *are* the training pass of the batch: they move the buffers and the random state, once a part, and
    their gradients add up to the gradient of the loss; only the passes at other points are extra.

    Args:
        losses: Each runs the module on its sub-batch and returns the scalar mean loss; called once at ``w`` and, where
            its weight isn't zero, at the points that the method asks for.
        parameters: The parameters to differentiate with respect to; moved and put back.
        alpha: Length α of the step of Algorithm 1, the method where none is given; see `penalty_gradient`.
        weights: Weight of each sub-batch in the penalty: its share of the batch; zero: it isn't perturbed.
        module: Whose buffers are restored after every extra pass, and whose devices' random state.
        loss_shares: Share of each sub-batch in the batch, for the loss and its gradient; ``None``: neither is wanted.
        extra_pass: Surrounds every extra pass: restores what else the losses touch.
        measured: What ``weights`` and ``loss_shares`` are multiplied by, known after the pass at ``w``: a loss may not
            weigh parts by their samples; ``None``: nothing.
        method: What is made of a sub-batch; ``None``: Algorithm 1 with ``alpha``.
        context: What else the method is to know; ``None``: nothing.

    Returns:
        A `Penalty`.

    Raises:
        ValueError: If a parameter is narrower than float32, or not one of ``alpha`` and ``method`` is given.
    """
    if (alpha is None) == (method is None):
        raise ValueError(f"Expected one of the arguments `alpha` and `method`, but got {alpha!r} and {method!r}.")
    method = FiniteDifference(alpha) if alpha is not None else method
    assert method is not None
    context = context or Context()
    live = loss_shares is not None
    passes = Passes(
        module,
        parameters,
        "the penalty",
        live=live,
        surround=extra_pass,
        attributes=context.attributes,
        precise=context.precise,
    )
    sums = _Sums(passes, context.divergence)
    with passes:
        for i, (loss, weight) in enumerate(zip(losses, weights, strict=True)):
            here = passes.here(loss, perturbed=weight != 0)
            factor = 1.0 if measured is None else measured.factor(i)
            if factor == 0:  # it has no labels
                continue
            if loss_shares is not None:
                sums.add_loss(here, loss_shares[i] * factor)
            if weight != 0:
                sums.spread_of(here)
                seed = context.seeds[i] if context.seeds else i
                shared = here if context.share is None else context.share(here)
                sums.add(method(SubBatch(passes, loss, shared, context.names, seed)), weight * factor)
    if measured is not None:
        if live and (missing := measured.missing()):
            sums.losses.append(torch.full_like(sums.total([]), missing))
        sums.multiply(measured.scale())
    penalty, gradient = finite_or_left_out(sums.total(sums.values), tuple(sums.gradient))
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

    def missing(self) -> float:
        """What the sum of the losses lacks: factors of parts without a gradient that turned out to be others."""

    def scale(self) -> float:
        """What the sums are multiplied by in the end; nan: there is no loss."""


class _Sums:
    """What the parts add up to."""

    def __init__(self, passes: Passes, divergence: bool) -> None:
        self._zero = torch.zeros((), dtype=torch.float64, device=passes.parameters[0].device)
        self._divergence = divergence
        self.values: list[Tensor] = []
        self.gradient: list[Tensor | None] = [None] * len(passes.parameters)
        self.losses: list[Tensor] = []
        self.loss_gradient: list[Tensor | None] = [None] * len(passes.parameters)
        self.spread = DivergenceAccumulator()
        self._parameters = passes.parameters

    def spread_of(self, here: Evaluation) -> None:
        """A gradient whose spread counts."""
        if self._divergence:
            pairs = zip(here.gradient, self._parameters, strict=True)  # parts may use other parameters each
            self.spread.add([torch.zeros_like(p) if g is None else g for g, p in pairs])

    def add(self, found: Evaluation, weight: float) -> None:
        """A part of the penalty."""
        with torch.no_grad():
            self.values.append(found.value.double() * weight)
            accumulate(self.gradient, found.gradient, weight)

    def add_loss(self, here: Evaluation, share: float) -> None:
        """A part of the loss."""
        self.losses.append(here.value.double() * share)
        accumulate(self.loss_gradient, here.gradient, share)

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

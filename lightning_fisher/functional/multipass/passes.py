"""Losses and gradients at ``w`` and at points near it: what every method with extra passes is made of.

A method looks at a sub-batch once at ``w`` and then at ``w + e`` for perturbations e of its own, and combines what it
finds linearly. `Passes` moves the weights and puts them back; all passes of a sub-batch start from the same buffers and
the same random state, so that dropout masks are the same at all points and batch-norm statistics move once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.functional.evaluation.graph import dense, refuse_reduced_precision, require_dependence
from lightning_fisher.functional.evaluation.precision import (
    autocast_off,
    device_types,
    full_precision,
    require_full_precision,
    without_kept_casts,
)
from lightning_fisher.functional.evaluation.state.attributes import Attributes
from lightning_fisher.functional.evaluation.state.buffers import BufferSnapshot
from lightning_fisher.functional.evaluation.state.layers import refuse_renormalized_embeddings
from lightning_fisher.functional.evaluation.state.random_state import RandomStateSnapshot
from lightning_fisher.functional.multipass.gradients import Gradient, accumulate, ascent, difference, norm, scaled

Loss = Callable[[], Tensor]
Surround = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Evaluation:
    """A loss and its gradient at one point, or a linear combination of several.

    ``a - b``, ``a + b`` and ``c * a`` with a number or a scalar tensor c combine value and gradient alike.

    Attributes:
        value: The loss, detached scalar.
        gradient: One tensor a parameter; ``None`` where the loss doesn't depend on it.
    """

    value: Tensor
    gradient: Gradient

    def __sub__(self, other: Evaluation) -> Evaluation:
        return Evaluation(self.value.double() - other.value.double(), difference(self.gradient, other.gradient))

    def __add__(self, other: Evaluation) -> Evaluation:
        total: list[Tensor | None] = list(scaled(self.gradient, 1.0))
        accumulate(total, other.gradient, 1.0)
        return Evaluation(self.value.double() + other.value.double(), tuple(total))

    def __mul__(self, factor: float | Tensor) -> Evaluation:
        return Evaluation(self.value.double() * factor, scaled(self.gradient, factor))

    __rmul__ = __mul__

    def norm(self) -> Tensor:
        """Euclidean norm of the gradient of all parameters together, float64 scalar."""
        return norm(self.gradient)


class Passes:
    """Context in which losses are evaluated at ``w`` and at points near it, by default in float32 or better.

    Weights are as before afterwards, bit for bit, also after an error (buffers and random state too, then).

    Args:
        module: Whose buffers, and whose devices' random state, are looked after.
        parameters: The parameters to differentiate with respect to; moved and put back.
        what: The quantity, for messages.
        live: Whether the passes at ``w`` are training passes, which move buffers and random state once a sub-batch;
            otherwise these are as before afterwards.
        surround: Entered around every pass that isn't a training pass: restores what else the losses touch.
        attributes: Whether what the modules keep in attributes is looked after like their buffers; a ``surround`` may
            do that already.
        precise: Whether the passes run in float32 or better, with autocast, TF32 and `torch.compile` off; otherwise as
            the caller has set them.

    Raises:
        ValueError: If a parameter is narrower than float32, complex or sparse, or a pass would change weights.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        what: str,
        *,
        live: bool,
        surround: Surround = nullcontext,
        attributes: bool = False,
        precise: bool = True,
    ) -> None:
        self.parameters = list(parameters)
        require_full_precision(self.parameters, what)
        refuse_renormalized_embeddings(module)
        self._module, self._live, self._surround = module, live, surround
        self._keeps, self._precise = attributes, precise
        self._devices = {p.device for p in self.parameters}
        self._types = device_types(module)
        self._first = True

    def __enter__(self) -> Passes:
        self._settings = ExitStack()
        self._weights: list[Tensor] = list(self.parameters)
        self._originals = [p.detach().clone() for p in self.parameters]
        self._start = RandomStateSnapshot(self._devices), BufferSnapshot(self._module), self._attributes()
        self._masks, self._buffers, self._held = self._start
        self._now: tuple[RandomStateSnapshot, BufferSnapshot, Attributes] | None = self._start
        if self._precise:
            self._settings.enter_context(torch.compiler.set_stance("force_eager"))
            self._settings.enter_context(full_precision(self._types))
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._settings.close()
        self._put_back()
        if error is not None or not self._live:
            for snapshot in self._start:
                snapshot.restore()

    def here(self, loss: Loss, *, perturbed: bool = True) -> Evaluation:
        """Evaluate ``loss`` at ``w``: the pass of a sub-batch that its perturbed passes belong to.

        Args:
            loss: Of the sub-batch.
            perturbed: Whether `there` will be called for it.

        Raises:
            ValueError: If the loss depends on none of the parameters, or runs in half precision though it mustn't.
        """
        # Nobody else's code runs since the last pass at another point, after which all was put back.
        now, self._now = self._now, None
        self._masks = RandomStateSnapshot(self._devices) if now is None else now[0]
        if self._live:
            if perturbed:
                if now is None:
                    self._buffers, self._held = BufferSnapshot(self._module, self._buffers), self._attributes()
                else:
                    _, self._buffers, self._held = now
            found = self._evaluate(loss)
        else:
            self._held.restore()  # not behind the pass: the loss may be asked again
            found = self._extra(loss)
            self._buffers.restore()
        require_dependence(any(g is not None for g in found.gradient))
        return found

    def there(self, loss: Loss, step: Sequence[Tensor | None], scale: float = 1.0) -> Evaluation:
        """Evaluate ``loss`` at ``w + scale · step``, from the buffers and random state of the last pass at ``w``.

        Args:
            loss: Of the sub-batch.
            step: One tensor a parameter, or ``None``: it isn't moved.
            scale: Factor of the step.
        """
        after = RandomStateSnapshot(self._devices)
        buffers = BufferSnapshot(self._module, self._buffers) if self._live else self._buffers
        held = self._attributes()
        self._buffers.restore()
        self._held.restore()
        moved = [(p, e) for p, e in zip(self.parameters, step, strict=True) if e is not None]
        try:
            with torch.no_grad():
                if moved:
                    torch._foreach_add_([p for p, _ in moved], [e for _, e in moved], alpha=scale)
            if not after.same_as(self._masks):
                self._masks.restore()
            return self._extra(loss)
        finally:
            buffers.restore()
            held.restore()
            after.restore()
            self._put_back()
            self._now = after, buffers, held

    def _attributes(self) -> Attributes:
        return Attributes(self._module if self._keeps else nn.Module())

    def _extra(self, loss: Loss) -> Evaluation:
        # What isn't finite at w + e is left out of the penalty: no anomaly of the user's own step.
        with self._surround(), torch.autograd.set_detect_anomaly(False):
            return self._evaluate(loss)

    def _evaluate(self, loss: Loss) -> Evaluation:
        if self._precise:
            return self._differentiated(loss)
        with without_kept_casts():
            return self._differentiated(loss)

    def _differentiated(self, loss: Loss) -> Evaluation:
        value = loss()
        if self._first and self._precise:  # it shows in which precision all of them run
            refuse_reduced_precision(value)
        self._first = False
        # The loss may have frozen some of them by now, or be a constant.
        variables = [p for p in self.parameters if p.requires_grad and value.requires_grad]
        with nullcontext() if self._precise else autocast_off(self._types):  # as the backward pass of a training
            found = iter(torch.autograd.grad(value, variables, allow_unused=True) if variables else ())
        gradients = (next(found) if variables and p.requires_grad else None for p in self.parameters)
        return Evaluation(value.detach(), tuple(None if g is None else dense(g) for g in gradients))

    def _put_back(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._originals)


class SubBatch:
    """A sub-batch as a method sees it: its loss and gradient at ``w``, and at any point near it.

    Args:
        passes: Evaluates.
        loss: Of the sub-batch.
        here: What the pass at ``w`` gave.
        names: Of the parameters; empty: their numbers.
        seed: Of `noise`.

    Attributes:
        here: The `Evaluation` at ``w``; of all processes together where they share the sub-batch.
        parameters: ``w``, at the weights as they are.
        names: Of the parameters.
    """

    def __init__(self, passes: Passes, loss: Loss, here: Evaluation, names: Sequence[str] = (), seed: int = 0) -> None:
        self._passes, self._loss, self._seed = passes, loss, seed
        self._drawn = 0
        self.here = here
        self.parameters = passes.parameters
        self.names = list(names) or [str(i) for i in range(len(self.parameters))]

    def at(self, step: Sequence[Tensor | None], scale: float = 1.0) -> Evaluation:
        """Evaluate at ``w + scale · step``, with the dropout masks and the batch-norm statistics of the pass at ``w``.

        Cost: a forward and backward pass of the sub-batch.

        Args:
            step: One tensor a parameter; ``None``: it isn't moved.
            scale: Factor of the step.
        """
        return self._passes.there(self._loss, step, scale)

    def ascent(self, length: float, adapted: Sequence[bool] = (), eta: float = 0.0) -> Gradient:
        """``length · g/‖g‖``, g the gradient at ``w``: the direction in which the loss rises; zero where g is.

        Args:
            length: Of the step.
            adapted: For each parameter, whether the step is measured in units of ``T = |w| + η``: ``length · T²
                g/‖T g‖`` with T = 1 for the others; empty: for none.
            eta: η.
        """
        return ascent(self.parameters, self.here.gradient, length, adapted, eta)

    def noise(self) -> tuple[Tensor, ...]:
        """Standard normal numbers, one tensor a parameter; others with every call, step and sub-batch.

        The same on all processes that share the sub-batch, and in a resumed run; torch's own generators don't move.
        """
        self._drawn += 1
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._drawn) % 2**63)
        return tuple(torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in self.parameters)


# What a method makes of a sub-batch: what it adds to the loss, and the gradient of that.
Method = Callable[[SubBatch], Evaluation]

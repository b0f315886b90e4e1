"""Losses and gradients at ``w`` and at points near it: what every method with extra passes is made of.

A method looks at a sub-batch once at ``w`` and then at ``w + e`` for perturbations e of its own, and combines the
gradients linearly. `PerturbedPasses` moves the weights and puts them back; buffers and random state end as one pass at
``w`` leaves them, so that batch-norm statistics are updated once and dropout masks are the same at both points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import is_integer
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
from lightning_fisher.functional.evaluation.samples import num_samples, ordinary, split
from lightning_fisher.functional.multipass.finite_difference import for_all_parameters, trainable_parameters
from lightning_fisher.functional.multipass.loop import Gradient, require_dependence
from lightning_fisher.functional.multipass.sub_batches import part_sizes

Loss = Callable[[], Tensor]


class Evaluation(NamedTuple):
    """What one pass gives.

    Attributes:
        value: The loss, detached scalar.
        gradient: One tensor a parameter; ``None`` where the loss doesn't depend on it.
    """

    value: Tensor
    gradient: Gradient


class StepGradient(NamedTuple):
    """The gradient that a method hands to the optimizer.

    Attributes:
        loss: ``L(B, w)``, float64 scalar.
        penalty: What the method adds to the loss, float64 scalar: ``gradient`` is ``∇(loss + penalty)`` with the
            perturbations and what they are multiplied with held constant. ``nan`` where it or its gradient isn't finite
            (in any sub-batch); ``gradient`` is the plain one of those sub-batches then.
        gradient: In the order of ``module.parameters()``; zeros where frozen or unused.
    """

    loss: Tensor
    penalty: Tensor
    gradient: tuple[Tensor, ...]


class PerturbedPasses:
    """Context in which a module is evaluated at ``w`` and at points near it, in float32 or better.

    Weights are as before afterwards, bit for bit, also after an error (buffers and random state too, then).

    Args:
        module: Whose buffers, and whose devices' random state, are looked after.
        parameters: The parameters to differentiate with respect to; moved and put back.
        what: The quantity, for messages.
        live: Whether the passes at ``w`` are training passes, which move buffers and random state; otherwise these are
            as before afterwards.
        surround: Entered around every pass that isn't a training pass: restores what else the losses touch.

    Raises:
        ValueError: If a parameter is narrower than float32, complex or sparse, or a pass would change weights.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        what: str,
        *,
        live: bool = True,
        surround: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.parameters = list(parameters)
        require_full_precision(self.parameters, what)
        refuse_renormalized_embeddings(module)
        self._module, self._live, self._surround = module, live, surround
        self._devices = {p.device for p in self.parameters}
        self._types = device_types(module)
        self._first = True

    def __enter__(self) -> PerturbedPasses:
        self._settings = ExitStack()
        self._originals = [p.detach().clone() for p in self.parameters]
        self._start = RandomStateSnapshot(self._devices), BufferSnapshot(self._module)
        self._before = self._after = self._start
        self._settings.enter_context(torch.compiler.set_stance("force_eager"))
        self._settings.enter_context(full_precision(self._types))
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._settings.close()
        self._put_back()
        if error is not None or not self._live:
            for snapshot in self._start:
                snapshot.restore()

    def here(self, loss: Loss) -> Evaluation:
        """Evaluate ``loss`` at ``w``: the pass of a sub-batch that its perturbed passes belong to."""
        masks = RandomStateSnapshot(self._devices)
        if self._live:
            self._before = masks, BufferSnapshot(self._module)
            found = self._evaluate(loss)
            self._after = RandomStateSnapshot(self._devices), BufferSnapshot(self._module)
        else:
            self._before = masks, self._start[1]
            with self._surround():
                found = self._evaluate(loss)
            self._after = RandomStateSnapshot(self._devices), self._start[1]
            self._start[1].restore()
        require_dependence(any(g is not None for g in found.gradient))
        return found

    def there(self, loss: Loss, step: Sequence[Tensor | None] | None = None, scale: float = 1.0) -> Evaluation:
        """Evaluate ``loss`` at ``w + scale · step``, from the buffers and random state that the last pass at ``w`` had.

        Args:
            loss: Need not be the loss of the pass at ``w``.
            step: One tensor a parameter, or ``None``: it isn't moved.
            scale: Factor of the step.
        """
        for snapshot in self._before:
            snapshot.restore()
        moved = [] if step is None else [(p, e) for p, e in zip(self.parameters, step, strict=True) if e is not None]
        try:
            with torch.no_grad():
                if moved:
                    torch._foreach_add_([p for p, _ in moved], [e for _, e in moved], alpha=scale)
            # What isn't finite at w + e is left out: no anomaly of the user's own step.
            with self._surround(), torch.autograd.set_detect_anomaly(False):
                return self._evaluate(loss)
        finally:
            self._put_back()
            for snapshot in self._after:
                snapshot.restore()

    def _evaluate(self, loss: Loss) -> Evaluation:
        with RefuseAutocast(self._types) if self._first else nullcontext():  # the first pass tells
            value = loss()
        self._first = False
        variables = [p for p in self.parameters if p.requires_grad and value.requires_grad]
        found = iter(torch.autograd.grad(value, variables, allow_unused=True) if variables else ())
        gradients = (next(found) if variables and p.requires_grad else None for p in self.parameters)
        return Evaluation(value.detach(), tuple(None if g is None else dense(g) for g in gradients))

    def _put_back(self) -> None:
        weights: list[Tensor] = list(self.parameters)
        with torch.no_grad():
            torch._foreach_copy_(weights, self._originals)


# What a method makes of a sub-batch: its loss at w, the penalty, and their gradient.
Method = Callable[[PerturbedPasses, Any, Any], tuple[Tensor, Tensor, Gradient]]


def step_gradient(
    module: nn.Module, inputs: Any, targets: Any, method: Method, *, what: str, num_sub_batches: int = 1
) -> StepGradient:
    """The mean of a method's gradients over consecutive sub-batches, weighted by size.

    Args:
        module: The network, in its current mode.
        inputs: N samples in dimension 0 of every tensor.
        targets: N targets.
        method: ``(passes, inputs, targets) → (loss, penalty, gradient)`` of a sub-batch; begins with ``passes.here``.
        what: The quantity, for messages.
        num_sub_batches: M ≤ N; where it doesn't divide N, sizes differ by one.

    Raises:
        ValueError: If targets or sub-batches don't fit the inputs, and as `PerturbedPasses`.
    """
    count = num_samples(inputs)
    if not is_integer(num_sub_batches) or not 1 <= num_sub_batches <= count:
        raise ValueError(
            f"Expected argument `num_sub_batches` to be an integer from 1 to the batch's {count} samples, "
            f"but got {num_sub_batches!r}."
        )
    trainable = trainable_parameters(module, count, targets)
    losses, penalties = [], []
    total: list[Tensor | None] = [None] * len(trainable)
    with torch.inference_mode(False), torch.enable_grad(), PerturbedPasses(module, trainable, what) as passes:
        inputs, targets = ordinary((inputs, targets), trainable[0].dtype)
        sizes = part_sizes(count, num_sub_batches)
        for x, y, size in zip(split(inputs, sizes), split(targets, sizes), sizes, strict=True):
            loss, penalty, gradient = method(passes, x, y)
            losses.append(loss.double() * (size / count))
            penalties.append(penalty.double() * (size / count))
            accumulate(total, gradient, size / count)
    return StepGradient(
        torch.stack(losses).sum(), torch.stack(penalties).sum(), for_all_parameters(module, trainable, total)
    )


def norm(gradient: Sequence[Tensor | None]) -> Tensor:
    """Euclidean norm of all tensors as one vector, float64 scalar."""
    parts = [g for g in gradient if g is not None]
    norms = [torch.linalg.vector_norm(g.detach(), dtype=torch.float64) for g in parts]
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


def scaled(gradient: Sequence[Tensor | None], factor: Tensor) -> Gradient:
    """``factor · gradient`` for a scalar tensor; the host doesn't wait for its value."""
    return tuple(None if g is None else g * factor.to(g) for g in gradient)


def linear(*terms: tuple[float, Gradient]) -> Gradient:
    """``Σ factor · gradient``; ``None`` where no term has one."""
    total: list[Tensor | None] = [None] * len(terms[0][1])
    for factor, gradient in terms:
        accumulate(total, gradient, factor)
    return tuple(total)


def accumulate(total: list[Tensor | None], gradient: Sequence[Tensor | None], factor: float) -> None:
    """``total += factor · gradient``, in place."""
    with torch.no_grad():
        for i, part in enumerate(gradient):
            old = total[i]
            if part is not None:
                total[i] = part * factor if old is None else old.add_(part, alpha=factor)


def finite_or_plain(here: Evaluation, penalty: Tensor, gradient: Gradient) -> tuple[Tensor, Tensor, Gradient]:
    """Loss, penalty and gradient as they are, or ``nan`` and the plain gradient if either isn't finite.

    Decided on the device: the host doesn't wait.
    """
    finite = torch.isfinite(penalty) & torch.isfinite(norm(gradient)).to(penalty.device)
    kept: list[Tensor | None] = []
    for plain, new in zip(here.gradient, gradient, strict=True):
        if new is None:
            kept.append(plain)
        else:
            kept.append(torch.where(finite.to(new.device), new, 0.0 if plain is None else plain))
    return here.value, torch.where(finite, penalty.double(), torch.nan), tuple(kept)

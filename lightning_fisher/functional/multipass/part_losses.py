"""The losses of the parts of a batch, and what each part weighs in the loss of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_fisher.functional.evaluation.samples import call_module, num_samples
from lightning_fisher.functional.evaluation.state.attributes import preserved_attributes
from lightning_fisher.functional.evaluation.state.buffers import preserved_buffers
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state
from lightning_fisher.functional.losses.denominator import PartWeights
from lightning_fisher.functional.losses.loss import LossFn, losses_of
from lightning_fisher.functional.losses.loss_parameters import loss_parameters, refuse_foreign_parameters
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.execution import refused
from lightning_fisher.functional.multipass.loop import Context, Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.passes import Method
from lightning_fisher.functional.multipass.vmap.penalty import penalty_by_vmap
from lightning_fisher.functional.multipass.vmap.stacked import StackedBatches, UnequalSizesError, VmapError


class PartLosses:
    """Losses of parts as functions of nothing; their weights are known once the pass at ``w`` is made.

    Args:
        module: The module.
        parts: ``(inputs, targets)`` of each.
        loss_fn: The loss; ``None``: cross-entropy.
        count: N, the samples of the batch.
        complete: Whether the parts are the whole batch.

    Attributes:
        loss_fn: The loss.
        weights: Of the parts in the loss of the whole.
    """

    def __init__(
        self,
        module: nn.Module,
        parts: Sequence[tuple[Any, Any]],
        loss_fn: LossFn | None,
        count: int,
        complete: bool = True,
    ) -> None:
        self.module = module
        self.parts = parts
        self.loss_fn = loss_fn
        self._count = count
        self._complete = complete
        self._looked = False
        self._last: tuple[int, Any, Tensor] | None = None
        self.weights = PartWeights(module, loss_fn)

    def again(self) -> PartLosses:
        """The same, of which nothing is known yet."""
        return PartLosses(self.module, self.parts, self.loss_fn, self._count, self._complete)

    def functions(self) -> list[Callable[[], Tensor]]:
        """One loss a part."""
        return [partial(self.loss, index) for index in range(len(self.parts))]

    def loss(self, index: int) -> Tensor:
        """Run the module on a part."""
        outputs, losses = self._evaluate(self.parts[index])
        self._last = index, outputs, losses.detach()
        return losses.mean()

    def of_part(self, part: tuple[Any, Any]) -> Tensor:
        """The loss of inputs and targets that are given."""
        return self._evaluate(part)[1].mean()

    def _evaluate(self, part: tuple[Any, Any]) -> tuple[Any, Tensor]:
        outputs = call_module(self.module, part[0])
        losses = losses_of(outputs, part[1], self.loss_fn)
        if not self._looked and self.loss_fn is not None:
            refuse_foreign_parameters(self.module, loss_parameters(outputs, part[1], losses))
        self._looked = True
        return outputs, losses

    def factor(self, index: int) -> float:
        """What a part that was just evaluated weighs, in the number of its samples: one for a plain mean."""
        assert self._last is not None
        assert self._last[0] == index
        _, outputs, losses = self._last
        self._last = None
        inputs, targets = self.parts[index]
        samples = num_samples(inputs)
        return self.weights.add(inputs, outputs, targets, losses, samples) / samples

    def scale(self) -> float:
        """What sums over all parts with these factors are to be multiplied by; nan where the loss of all is."""
        return self.scale_of_whole() if self._complete else 1.0

    def scale_of_whole(self) -> float:
        """As `scale`, once the weights of the whole batch are known."""
        if self.weights.lost() or not self.weights.total:
            return float("nan")
        return self._count / self.weights.total

    def missing(self) -> float:
        """What the sum of the parts' losses lacks before it is scaled."""
        return self.weights.missing / self._count

    def factors(self) -> list[float]:
        """Factors of all parts at once, scaled, from forward passes that leave no trace."""
        sizes = [num_samples(inputs) for inputs, _ in self.parts]
        devices = {p.device for p in self.module.parameters()}
        with preserved_buffers(self.module), preserved_random_state(devices):
            for index, (_, targets) in enumerate(self.parts):
                if self.loss_fn is None:  # the labels are enough
                    self.weights.add(None, None, targets, targets, sizes[index])
                else:
                    self.loss(index)
                    self.factor(index)
        scale = self.scale()
        return [w / size * scale if w else 0.0 for w, size in zip(self.weights.each, sizes, strict=True)]


def penalty_of_parts(
    losses: PartLosses, parameters: Sequence[nn.Parameter], *, method: Method, weights: Sequence[float], passes: str
) -> Penalty:
    """`penalty_of_losses` in a loop or by vmap, in a loop without the spread of the gradients.

    Args:
        losses: Of the perturbed parts.
        parameters: See `penalty_of_losses`.
        method: A `FiniteDifference` for vmap, any other for the loop.
        weights: See `penalty_of_losses`.
        passes: ``"loop"`` or ``"vmap"``.

    Raises:
        ValueError: If vmap is asked for and can't do it, and as `penalty_of_losses`.
    """

    def loop(losses: PartLosses) -> Penalty:
        return penalty_of_losses(
            losses.functions(),
            parameters,
            method=method,
            weights=weights,
            module=losses.module,
            measured=losses,
            context=Context(attributes=True, divergence=False),
        )

    if passes == "loop":
        return loop(losses)
    assert isinstance(method, FiniteDifference)
    try:
        StackedBatches(losses.parts)
        with preserved_attributes(losses.module):
            weighted = [weight * factor for weight, factor in zip(weights, losses.factors(), strict=True)]
            return penalty_by_vmap(
                losses.of_part,
                losses.parts,
                parameters,
                difference=method,
                weight=weighted,
                module=losses.module,
                loss_fn=losses.loss_fn,
            )
    except UnequalSizesError:
        return loop(losses)
    except VmapError as error:
        loop(losses.again())  # the loss's own failure, if it is one
        raise refused(error) from error

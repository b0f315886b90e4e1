"""The two forms in which the sub-batches are evaluated: one after the other, or together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_fisher.arguments import require_choice
from lightning_fisher.exceptions import LightningFisherError
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.loop import Context, Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.passes import Method
from lightning_fisher.functional.multipass.vmap.penalty import ExtraPass, penalty_by_vmap
from lightning_fisher.functional.multipass.vmap.stacked import VmapError

PASSES = ("auto", "loop", "vmap")  # "auto" is a choice of the callbacks, which remember it
FIXED = ("loop", "vmap")


class Forms:
    """A penalty, `penalty_of_losses` of ``loss(batch)`` for every batch, to be evaluated in either form.

    Args:
        loss: Runs the module on a batch and returns the mean loss; see `penalty_by_vmap`.
        batches: The perturbed sub-batches.
        parameters: See `penalty_of_losses`.
        method: A `FiniteDifference` for vmap, any other for the loop.
        weights: See `penalty_of_losses`; all the same where the batches are of one size.
        module: See `penalty_of_losses`.
        extra_pass: See `penalty_of_losses`.
        context: See `penalty_of_losses`.
    """

    def __init__(
        self,
        loss: Callable[[Any], Tensor],
        batches: Sequence[Any],
        parameters: Sequence[nn.Parameter],
        *,
        method: Method,
        weights: Sequence[float],
        module: nn.Module,
        extra_pass: ExtraPass = nullcontext,
        context: Context | None = None,
    ) -> None:
        self.loss, self.batches, self.parameters = loss, batches, list(parameters)
        self._method, self._weights, self._module, self._extra_pass = method, weights, module, extra_pass
        self._context = context

    def loop(self, loss: Callable[[Any], Tensor] | None = None) -> Penalty:
        """One sub-batch after the other; of another loss of a batch, if given."""
        return penalty_of_losses(
            [partial(loss or self.loss, batch) for batch in self.batches],
            self.parameters,
            method=self._method,
            weights=self._weights,
            module=self._module,
            extra_pass=self._extra_pass,
            context=self._context,
        )

    def vmap(self) -> Penalty:
        """All sub-batches in one pass at ``w`` and one at each end of their steps."""
        assert isinstance(self._method, FiniteDifference)
        return penalty_by_vmap(
            self.loss,
            self.batches,
            self.parameters,
            difference=self._method,
            weight=self._weights[0],
            module=self._module,
            extra_pass=self._extra_pass,
        )


class PassesError(LightningFisherError, ValueError):
    """The passes can't be evaluated in the form that was asked for."""


def refused(error: VmapError) -> PassesError:
    """The line for a loss that vmap was asked to evaluate and can't."""
    return PassesError(
        f'Expected a loss that torch.func.vmap can evaluate with `passes="vmap"`, but {error}; choose "loop".'
    )


def check_passes(passes: str, allowed: Sequence[str] = PASSES) -> None:
    """Refuse a form that isn't there.

    Raises:
        ValueError: With the forms there are.
    """
    require_choice("passes", passes, tuple(allowed))

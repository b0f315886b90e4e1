"""A `training_step` that trains with ``L(B, w) + β R_α(w)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer
from lightning_fisher.callbacks.multipass.batches.part import PartOfBatch
from lightning_fisher.callbacks.multipass.batches.sub_batches import BatchSplitter, SplitFn, SubBatches
from lightning_fisher.callbacks.multipass.extra_pass import THOROUGH, ExtraPasses, SkippedError, StepState
from lightning_fisher.callbacks.multipass.gradient_carrier import carry_gradient
from lightning_fisher.callbacks.multipass.logged_values import CollectedLogs
from lightning_fisher.callbacks.multipass.pass_choice import PassChoice
from lightning_fisher.callbacks.multipass.state.hooks import gradient_hooks_off
from lightning_fisher.callbacks.multipass.step_outputs import detached, loss_of, merge_outputs
from lightning_fisher.callbacks.multipass.stepped import stepped_parameters
from lightning_fisher.callbacks.multipass.training_step import TrainingStep, in_place_of
from lightning_fisher.functional import Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.execution import check_passes
from lightning_fisher.functional.multipass.finite_difference import check_penalty_options
from lightning_fisher.functional.multipass.regularized import (
    check_gradient,
    check_passes_of,
    check_scaling,
    combine,
    damping,
)
from lightning_fisher.functional.multipass.sub_batches import check_perturbed


@dataclass(frozen=True)
class PenaltyOptions:
    """How the penalty is evaluated; each as in `FisherRegularizer`.

    Raises:
        ValueError: If one doesn't fit.
    """

    alpha: float = 1e-4
    num_sub_batches: int = 8
    split_fn: SplitFn | None = None
    gradient: str = "full"
    perturbed: int | None = None
    passes: str = "loop"
    scaling: str = "linear"
    losses: Sequence[int] | None = None
    optimizers: Sequence[int] | None = None
    manual_accumulation: int = 1

    def __post_init__(self) -> None:
        check_penalty_options(self.alpha, self.num_sub_batches)
        check_gradient(self.gradient)
        check_passes(self.passes)
        check_passes_of(self.gradient, self.passes)
        check_scaling(self.scaling)
        check_perturbed(self.perturbed, self.num_sub_batches)
        if self.split_fn is not None and not callable(self.split_fn):
            raise ValueError(f"Expected argument `split_fn` to be callable or None, but got {self.split_fn!r}.")
        for name in ("losses", "optimizers"):
            require_numbers(name, getattr(self, name))
        require_integer("manual_accumulation", self.manual_accumulation, least=1)


def require_numbers(name: str, value: Any) -> None:
    """Refuse what is neither `None` nor a list of numbers from 0 on.

    Raises:
        ValueError: With the argument's name, what is allowed and the value received.
    """
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    if value is not None and not (listed and all(type(i) is int and i >= 0 for i in value)):
        raise ValueError(f"Expected argument `{name}` to be a list of numbers from 0 on or None, but got {value!r}.")


class FisherStep:
    """Makes the regularized form of a module's `training_step`.

    Attributes:
        options: How the penalty is evaluated.
        splitter: Splits the batches.
        choice: Whether the sub-batches' passes are a loop or one.
    """

    def __init__(self, options: PenaltyOptions) -> None:
        self.options = options
        self.splitter = BatchSplitter(options.num_sub_batches, options.perturbed, options.split_fn)
        self.choice = PassChoice(options.passes, _gather)
        self._passes = ExtraPasses()
        self._left_out: Tensor | None = None  # on the device: asked once an epoch

    def take_left_out(self) -> int:
        """How many penalties were not finite, and left out, since this was last asked; waits for the device."""
        count, self._left_out = 0 if self._left_out is None else int(self._left_out), None
        return count

    def wrap(
        self, trainer: Trainer, module: LightningModule, training_step: TrainingStep, beta: float, weight: float
    ) -> TrainingStep:
        """The regularized step of one batch.

        Args:
            trainer: The trainer.
            module: The module.
            training_step: Its own step.
            beta: β, as it is logged.
            weight: What ``∇R_α`` is multiplied with: β, more where only some steps are regularized, less where not all
                sub-batches are perturbed and `scaling` says so.
        """
        scaling, shared = self.options.scaling, self.options.gradient == "shared"

        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = stepped_parameters(trainer, module)
            if not parameters:  # all frozen by now
                return training_step(batch, *args, **kwargs)
            pieces = self.splitter.split(trainer, batch)

            def own(piece: Any) -> Any:
                return training_step(piece, *args, **kwargs)

            if shared:
                if not self._passes.succeeded:  # what the step changes is seen before the training passes
                    self._full(trainer, module, parameters, pieces, batch, own, PassChoice("loop"))
                found = self._shared(trainer, module, parameters, pieces, own)
                if found is None:
                    return None
                penalty, output = found
                assert penalty.loss is not None
                assert penalty.loss_gradient is not None
                gradient = combine(penalty.loss_gradient, penalty.gradient, weight * damping(scaling, pieces.scale))
                loss = carry_gradient(penalty.loss.to(parameters[0].dtype), 1.0, parameters, gradient)
            else:
                extra = self._full(trainer, module, parameters, pieces, batch, own, self.choice)
                output = own(batch)
                if output is None or extra is None:  # a batch the module skips
                    return output
                penalty = extra
                carried = weight * damping(scaling, pieces.scale)
                loss = carry_gradient(loss_of(output), carried, parameters, penalty.gradient)
            self.count(penalty)
            log_penalty(trainer, module, penalty, beta)
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        return in_place_of(training_step, step)

    def count(self, penalty: Penalty) -> None:
        """Count a penalty that isn't finite."""
        left_out = torch.isnan(penalty.value).long()
        self._left_out = left_out if self._left_out is None else self._left_out + left_out

    def rehearse(self, trainer: Trainer, module: LightningModule, training_step: TrainingStep) -> TrainingStep:
        """The module's own step, after the extra passes of a regularized one, which leave no trace.

        Raises:
            PartError: In the step, if they fail and the step of the whole batch doesn't.
        """

        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = stepped_parameters(trainer, module)

            def own(piece: Any) -> Any:
                return training_step(piece, *args, **kwargs)

            if parameters:
                pieces = self.splitter.split(trainer, batch)
                fixed = PassChoice("vmap" if self.choice.chosen == "vmap" else "loop")
                self._full(trainer, module, parameters, pieces, batch, own, fixed)
            self._passes.thorough = THOROUGH
            return own(batch)

        return in_place_of(training_step, step)

    def _weights(self, pieces: SubBatches) -> tuple[list[float], list[float]]:
        """Share of each part in the batch, and its weight in the penalty."""
        count = sum(part.size for part in pieces.parts)
        shares = [part.size / count for part in pieces.parts]
        scaled = [pieces.scale * share for share in shares]
        return shares, [w if part.perturbed else 0.0 for w, part in zip(scaled, pieces.parts, strict=True)]

    def _full(
        self,
        trainer: Trainer,
        module: LightningModule,
        parameters: list[nn.Parameter],
        pieces: SubBatches,
        batch: Any,
        training_step: Callable[[Any], Any],
        choice: PassChoice,
    ) -> Penalty | None:
        """The penalty by extra passes only; ``None`` where the module skips a sub-batch."""
        state, part = StepState(trainer, module, parameters, self._passes), PartOfBatch(trainer, self._passes)

        def evaluate(piece: Any) -> Tensor:
            output = part.run(training_step, piece)
            if output is None:
                raise SkippedError
            return part.checked(loss_of(output))

        _, weights = self._weights(pieces)
        kept = [i for i, part in enumerate(pieces.parts) if part.perturbed]
        undecided = choice.chosen is None
        try:
            with gradient_hooks_off(module, parameters), torch.enable_grad():
                penalty = choice.penalty(
                    evaluate,
                    [pieces.pieces[i] for i in kept],
                    parameters,
                    alpha=self.options.alpha,
                    weights=[weights[i] for i in kept],
                    module=module,
                    extra_pass=state.extra_pass,
                    # The first steps are checked more, which takes time; later all memory of training is in use.
                    decide=self._passes.thorough <= 0,
                )
        except SkippedError:
            return None
        except Exception as error:
            part.explain(error, lambda: training_step(batch))
            raise
        self._passes.thorough -= 1
        self._passes.succeeded = True
        if undecided and choice.chosen is not None:
            module.print(f"FisherRegularizer: sub-batches are evaluated by {choice.chosen} ({choice.reason})")
        return penalty

    def _shared(
        self,
        trainer: Trainer,
        module: LightningModule,
        parameters: list[nn.Parameter],
        pieces: SubBatches,
        training_step: Callable[[Any], Any],
    ) -> tuple[Penalty, Any] | None:
        """The penalty with the gradient of the loss, and what the sub-batches' steps returned, merged."""
        shares, weights = self._weights(pieces)
        state, part = StepState(trainer, module, parameters, self._passes), PartOfBatch(trainer, self._passes)
        logs = CollectedLogs(module)
        outputs: dict[int, Any] = {}

        def live(index: int) -> Tensor:
            """The pass at ``w`` is the training pass: what it logs and returns counts."""
            again = index in outputs
            if again:
                state.perturb_the_start()
                output = part.run(training_step, pieces.pieces[index])
            else:
                if outputs:
                    state.next_part()
                with logs.during(shares[index]):
                    output = state.training_pass(lambda: part.run(training_step, pieces.pieces[index]))
            if output is None:
                raise SkippedError
            if not again:
                outputs[index] = detached(output)
            return part.checked(loss_of(output))

        try:
            with gradient_hooks_off(module, parameters), torch.enable_grad():
                penalty = penalty_of_losses(
                    [partial(live, index) for index in range(len(pieces.parts))],
                    parameters,
                    alpha=self.options.alpha,
                    weights=weights,
                    module=module,
                    loss_shares=shares,
                    extra_pass=state.extra_pass_between,
                )
        except SkippedError:
            return None
        state.keep_moved()
        self._passes.thorough -= 1
        logs.replay()
        merged = None
        if isinstance(outputs[0], Mapping):
            found = [outputs[i] for i in range(len(pieces.parts))]
            merged = merge_outputs(found, shares, [part.size for part in pieces.parts])
        return penalty, merged


def _gather(found: Any) -> list[Any]:
    """What all processes have found."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [found]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, found)
    return gathered


def log_penalty(trainer: Trainer, module: LightningModule, penalty: Penalty, beta: float, suffix: str = "") -> None:
    """What every regularized step logs."""
    values: dict[str, Tensor | float] = {
        f"fisher/penalty{suffix}": penalty.value,
        f"fisher/grad_norm_var{suffix}": penalty.divergence.norm_variance,
        f"fisher/grad_cosine{suffix}": penalty.divergence.cosine,
        "fisher/beta": beta,
    }
    module.log_dict(
        values,  # type: ignore[arg-type]
        on_step=True,
        on_epoch=False,
        sync_dist=trainer.world_size > 1,
        batch_size=1,
    )

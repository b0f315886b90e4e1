"""A `training_step` in automatic optimization that trains with what a method adds to the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.announcements import announce
from lightning_fisher.callbacks.multipass.batches.part import PartOfBatch
from lightning_fisher.callbacks.multipass.batches.sub_batches import SubBatches
from lightning_fisher.callbacks.multipass.extra_pass import THOROUGH, SkippedError, StepState
from lightning_fisher.callbacks.multipass.gradient_carrier import carry_gradient
from lightning_fisher.callbacks.multipass.logged_values import CollectedLogs
from lightning_fisher.callbacks.multipass.pass_choice import PassChoice
from lightning_fisher.callbacks.multipass.state.hooks import gradient_hooks_off
from lightning_fisher.callbacks.multipass.step_outputs import detached, loss_of, merge_outputs
from lightning_fisher.callbacks.multipass.stepped import stepped_parameters
from lightning_fisher.callbacks.multipass.steps.base import MultiPassStep
from lightning_fisher.callbacks.multipass.training_step import TrainingStep, in_place_of
from lightning_fisher.functional import Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.execution import Forms
from lightning_fisher.functional.multipass.gradients import combine
from lightning_fisher.functional.multipass.regularized import damping


class AutomaticStep(MultiPassStep):
    """Adds the penalty's gradient to that of the loss which `training_step` returns: by passes beside the training
    pass (``gradient="full"``), or by training passes of the sub-batches (``"shared"``).
    """

    def wrap(
        self, trainer: Trainer, module: LightningModule, training_step: TrainingStep, shown: float, weight: float
    ) -> TrainingStep:
        """See `MultiPassStep.wrap`."""
        scaling, shared = self.options.scaling, self.options.gradient == "shared"

        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = stepped_parameters(trainer, module)
            if not parameters:  # all frozen by now
                return training_step(batch, *args, **kwargs)
            pieces = self.splitter.split(trainer, batch)

            def own(piece: Any) -> Any:
                return training_step(piece, *args, **kwargs)

            if shared:
                if not self.known.succeeded:  # what the step changes is seen before the training passes
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
            self.log(trainer, module, penalty, shown)
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        return in_place_of(training_step, step)

    def rehearse(self, trainer: Trainer, module: LightningModule, training_step: TrainingStep) -> TrainingStep:
        """See `MultiPassStep.rehearse`."""

        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = stepped_parameters(trainer, module)

            def own(piece: Any) -> Any:
                return training_step(piece, *args, **kwargs)

            if parameters:
                pieces = self.splitter.split(trainer, batch)
                fixed = PassChoice("vmap" if self.choice.chosen == "vmap" else "loop")
                self._full(trainer, module, parameters, pieces, batch, own, fixed)
            self.known.thorough = THOROUGH
            return own(batch)

        return in_place_of(training_step, step)

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
        state, part = StepState(trainer, module, parameters, self.known), PartOfBatch(trainer, self.known)
        _, weights = self.weights(pieces)
        kept = [i for i, part in enumerate(pieces.parts) if part.perturbed]
        evaluated = self.evaluated(trainer, module, training_step, [pieces.pieces[i] for i in kept])

        def evaluate(piece: Any) -> Tensor:
            output = part.run(partial(evaluated, piece), piece)
            if output is None:
                raise SkippedError
            return part.checked(loss_of(output))

        undecided = choice.chosen is None
        try:
            with gradient_hooks_off(module, parameters), torch.enable_grad():
                forms = Forms(
                    evaluate,
                    [pieces.pieces[i] for i in kept],
                    parameters,
                    method=self.definition.method,
                    weights=[weights[i] for i in kept],
                    module=module,
                    extra_pass=state.extra_pass,
                    context=self.context(trainer, module, parameters, kept),
                )
                # The first steps are checked more, which takes time; later all memory of training is in use.
                penalty = choice.penalty(forms, decide=self.known.thorough <= 0)
        except SkippedError:
            return None
        except Exception as error:
            part.explain(error, lambda: training_step(batch))
            raise
        self.known.thorough -= 1
        self.known.succeeded = True
        if undecided and choice.chosen is not None:
            announce(
                module,
                f"{type(self.definition).__name__}: sub-batches are evaluated by {choice.chosen} ({choice.reason})",
            )
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
        shares, weights = self.weights(pieces)
        state, part = StepState(trainer, module, parameters, self.known), PartOfBatch(trainer, self.known)
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
                    method=self.definition.method,
                    weights=weights,
                    module=module,
                    loss_shares=shares,
                    extra_pass=state.extra_pass_between,
                    context=self.context(trainer, module, parameters, range(len(pieces.parts))),
                )
        except SkippedError:
            return None
        state.keep_moved()
        self.known.thorough -= 1
        logs.replay()
        merged = None
        if isinstance(outputs[0], Mapping):
            found = [outputs[i] for i in range(len(pieces.parts))]
            merged = merge_outputs(found, shares, [part.size for part in pieces.parts])
        return penalty, merged

"""A `training_step` in automatic optimization that trains with what a method adds to the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from lightning_fisher.callbacks.multipass.lineage import GradientLineage
from lightning_fisher.callbacks.multipass.logged_values import CollectedLogs
from lightning_fisher.callbacks.multipass.pass_choice import PassChoice
from lightning_fisher.callbacks.multipass.state.hooks import (
    ModuleHookError,
    backward_tables,
    gradient_hooks_off,
    module_hooks_watched,
)
from lightning_fisher.callbacks.multipass.step_outputs import detached, loss_of, merge_outputs
from lightning_fisher.callbacks.multipass.stepped import (
    OtherParametersError,
    differentiate,
    require_as_before,
    stepped_parameters,
)
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

    _modules: Sequence[nn.Module] = ()  # all that the step may run through
    _lineage: GradientLineage | None = None

    def wrap(
        self, trainer: Trainer, module: LightningModule, training_step: TrainingStep, shown: float, weight: float
    ) -> TrainingStep:
        """See `MultiPassStep.wrap`."""
        scaling, shared = self.options.scaling, self.options.gradient == "shared"

        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            self.unfollow()  # an optimizer may call for another gradient in its step
            parameters = stepped_parameters(trainer, module)

            def own(piece: Any) -> Any:
                return training_step(piece, *args, **kwargs)

            if not parameters:  # all frozen by now
                output = own(batch)
                require_as_before(trainer, module, parameters)
                return output
            pieces = self.splitter.split(trainer, batch)
            if shared:
                if not self.known.succeeded:  # what the step changes is seen before the training passes
                    _, parameters = self._full(trainer, module, parameters, pieces, batch, own, PassChoice("loop"))
                found = self._shared(trainer, module, parameters, pieces, own)
                if found is None:
                    return None
                penalty, output = found
                assert penalty.loss is not None
                assert penalty.loss_gradient is not None
                gradient = combine(penalty.loss_gradient, penalty.gradient, weight * damping(scaling, pieces.scale))
                loss = carry_gradient(penalty.loss.to(parameters[0].dtype), 1.0, parameters, gradient)
            else:
                thorough = self.known.thorough > 0
                extra, parameters = self._full(trainer, module, parameters, pieces, batch, own, self.choice)
                output = self._watched(own, batch) if thorough else own(batch)
                if output is None or extra is None:  # a batch the module skips
                    if output is not None:
                        self.skipped(module)
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
            return self._watched(own, batch)

        return in_place_of(training_step, step)

    def follow(self, trainer: Trainer, module: LightningModule) -> None:
        """See `MultiPassStep.follow`."""
        self.unfollow()
        names = {id(p): name for name, p in module.named_parameters()}
        stepped = [p for p in stepped_parameters(trainer, module) if id(p) not in self.known.without]
        self._lineage = GradientLineage((names.get(id(p), "a parameter of the optimizer"), p) for p in stepped)
        self._lineage.begin()

    def unfollow(self) -> None:
        """See `MultiPassStep.unfollow`."""
        if self._lineage is not None:
            self._lineage.end()

    def followed(self) -> None:
        """See `MultiPassStep.followed`."""
        if self._lineage is not None:
            lineage, self._lineage = self._lineage, None
            lineage.refuse_overwritten()

    def _watched(self, training_step: Callable[[Any], Any], batch: Any) -> Any:
        """The step of the whole batch, in whose backward pass the hooks of modules change no gradient."""
        with module_hooks_watched(self._modules):
            return training_step(batch)

    def _full(
        self,
        trainer: Trainer,
        module: LightningModule,
        parameters: list[nn.Parameter],
        *args: Any,
    ) -> tuple[Penalty | None, list[nn.Parameter]]:
        """The penalty by extra passes only, ``None`` where the module skips a sub-batch; of these parameters, or those
        that the step itself lets the optimizers step.
        """
        try:
            return self._of(trainer, module, parameters, *args), parameters
        except OtherParametersError as found:
            return self._of(trainer, module, found.parameters, *args), found.parameters

    def _of(
        self,
        trainer: Trainer,
        module: LightningModule,
        parameters: list[nn.Parameter],
        pieces: SubBatches,
        batch: Any,
        training_step: Callable[[Any], Any],
        choice: PassChoice,
    ) -> Penalty | None:
        """The penalty of these parameters."""
        state = StepState(trainer, module, parameters, self.known)
        part = PartOfBatch(trainer, self.known, self.options.precise)
        _, weights = self.weights(pieces)
        kept = [i for i, part in enumerate(pieces.parts) if part.perturbed]
        self._modules, first = state.modules, True
        evaluated = self.evaluated(trainer, module, training_step, [pieces.pieces[i] for i in kept])

        def whole() -> None:
            differentiate(module, loss_of(training_step(batch)), parameters)

        def evaluate(piece: Any) -> Tensor:
            nonlocal first
            output = part.run(partial(evaluated, piece), piece)
            if first:
                require_as_before(trainer, module, parameters)
                first = False
            if output is None:
                raise SkippedError
            return part.checked(loss_of(output))

        undecided = choice.chosen is None
        try:
            with gradient_hooks_off(state.modules, parameters), torch.enable_grad():
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
            part.explain(error, whole)
            raise
        if self.known.thorough > 0:
            self.known.without = {id(p) for p, g in zip(parameters, penalty.gradient, strict=True) if g is None}
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
        state = StepState(trainer, module, parameters, self.known)
        part = PartOfBatch(trainer, self.known, self.options.precise)
        logs = CollectedLogs(module)
        if backward_tables(state.modules):
            raise ModuleHookError(
                f'Expected argument `gradient` to be "full" for modules with backward hooks, which would see no '
                f'gradient with "shared", but {type(module).__name__} has such hooks.'
            )
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
                if not outputs:
                    require_as_before(trainer, module, parameters)
                outputs[index] = detached(output)
            return part.checked(loss_of(output))

        try:
            with gradient_hooks_off(state.modules, parameters), torch.enable_grad():
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

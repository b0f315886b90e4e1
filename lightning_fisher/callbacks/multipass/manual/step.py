"""The losses of a step in manual optimization, each trained with what a method adds to it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.callbacks.multipass.batches.sub_batches import SubBatches
from lightning_fisher.callbacks.multipass.extra_pass import THOROUGH, SkippedError
from lightning_fisher.callbacks.multipass.gradient_carrier import carry_gradient
from lightning_fisher.callbacks.multipass.manual.live import LiveStep, StepMemory
from lightning_fisher.callbacks.multipass.state.hooks import gradient_hooks_off
from lightning_fisher.callbacks.multipass.stepped import differentiate, stepped_parameters
from lightning_fisher.callbacks.multipass.steps.base import MultiPassStep
from lightning_fisher.callbacks.multipass.training_step import TrainingStep, in_place_of
from lightning_fisher.functional import Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.regularized import damping


class ManualStep(MultiPassStep):
    """Makes the form of a `training_step` in manual optimization that trains with a method.

    What is handed to `manual_backward` carries the penalty's gradient of the parameters that the next optimizer steps;
    everything else in the step is the module's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._memory = StepMemory()
        self._warned = False

    def wrap(
        self, trainer: Trainer, module: LightningModule, training_step: TrainingStep, shown: float, weight: float
    ) -> TrainingStep:
        """See `MultiPassStep.wrap`."""
        return self._wrapped(trainer, module, training_step, shown, weight)

    def rehearse(self, trainer: Trainer, module: LightningModule, training_step: TrainingStep) -> TrainingStep:
        """See `MultiPassStep.rehearse`: the penalties of the batch's losses are evaluated, and carried by none."""
        return self._wrapped(trainer, module, training_step, 0.0, None)

    def _wrapped(
        self, trainer: Trainer, module: LightningModule, training_step: TrainingStep, shown: float, weight: float | None
    ) -> TrainingStep:
        options = self.options

        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            def own(piece: Any) -> Any:
                return training_step(piece, *args, **kwargs)

            pieces = self.splitter.split(trainer, batch)

            def on_loss(live: LiveStep, loss: Tensor, number: int, optimizers: list[int]) -> Tensor:
                parameters = self._regularized(trainer, module, number, optimizers)
                if not depends(loss, parameters):
                    return loss
                penalty = self._of_loss(trainer, module, live, parameters, pieces, loss)
                if penalty is None:
                    self.skipped(module)
                if penalty is None or weight is None:
                    return loss
                self.count(penalty)
                self.log(trainer, module, penalty, shown, f"_{number}" if number else "")
                carried = weight * damping(options.scaling, pieces.scale) / options.manual_accumulation
                return carry_gradient(loss, carried, parameters, penalty.gradient)

            live = LiveStep(trainer, module, own, self.known, self._memory, options.precise)
            try:
                if not self.known.succeeded:
                    live.scout(pieces.pieces[0])
            except Exception as error:
                live.part.explain(error, lambda: live.scout(batch))
                raise
            output = live.run(batch, on_loss, pieces.pieces[0])
            self.known.thorough -= 1
            self.known.succeeded = True
            if weight is None:
                self.known.thorough = THOROUGH
            self._warn_of_accumulation()
            return output

        return in_place_of(training_step, step)

    def _regularized(
        self, trainer: Trainer, module: LightningModule, number: int, optimizers: list[int]
    ) -> list[nn.Parameter]:
        """The parameters that are perturbed for a loss: none where it isn't to be regularized."""
        options = self.options
        if options.losses is not None and number not in options.losses:
            return []
        chosen = [i for i in optimizers if options.optimizers is None or i in options.optimizers]
        return stepped_parameters(trainer, module, [trainer.optimizers[i] for i in chosen]) if chosen else []

    def _of_loss(
        self,
        trainer: Trainer,
        module: LightningModule,
        live: LiveStep,
        parameters: list[nn.Parameter],
        pieces: SubBatches,
        whole: Tensor,
    ) -> Penalty | None:
        times = self.options.manual_accumulation
        _, weights = self.weights(pieces)
        kept = [i for i, part in enumerate(pieces.parts) if part.perturbed]
        copies = [live.shadows.of(p) for p in parameters]

        own = self.definition.own_loss
        memories = dict(zip(kept, self.memories(trainer, len(kept)), strict=True))

        def loss(index: int) -> Tensor:
            piece = pieces.pieces[index]
            found = live.loss_of(piece, parameters)  # the weights are what they became up to this loss
            if own is None:
                return found * times
            return live.part.checked(live.part.run(lambda copy: own(module, copy, memories[index]), piece))

        try:
            with gradient_hooks_off(live.modules, ()), live.rewound(), torch.enable_grad():
                return penalty_of_losses(
                    [partial(loss, i) for i in kept],
                    copies,
                    method=self.definition.method,
                    weights=[weights[i] for i in kept],
                    module=live.shadows.holder,
                    extra_pass=partial(live.extra_pass, parameters),
                    context=self.context(trainer, module, parameters, kept),
                )
        except SkippedError:
            return None
        except Exception as error:
            live.part.explain(error, lambda: differentiate(module, whole, parameters))
            raise

    def _warn_of_accumulation(self) -> None:
        if self._memory.accumulates and self.options.manual_accumulation == 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self.definition).__name__} sees gradients of several batches accumulated in manual "
                "optimization: if the loss is divided by their number n, give `manual_accumulation=n`, so that the "
                "penalty is that of the whole loss.",
                stacklevel=2,
            )


def depends(loss: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether a gradient of the loss reaches one of the parameters."""
    looked_for = {id(p) for p in parameters}
    waiting, seen = [loss.grad_fn] if looked_for else [], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in looked_for:
            return True
        waiting += [following for following, _ in node.next_functions]
    return False

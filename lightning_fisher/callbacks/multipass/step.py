"""A `training_step` that trains with what a method adds to the loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.announcements import announce
from lightning_fisher.arguments import require_choice, require_integer
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
from lightning_fisher.functional.multipass.gradients import combine
from lightning_fisher.functional.multipass.loop import Context
from lightning_fisher.functional.multipass.passes import Evaluation, Method
from lightning_fisher.functional.multipass.regularized import (
    GRADIENTS,
    check_passes_of,
    check_scaling,
    damping,
)
from lightning_fisher.functional.multipass.sub_batches import check_perturbed

OwnLoss = Callable[[LightningModule, Any, dict[str, Any]], Tensor]


class Definition(Protocol):
    """What a method says of itself.

    Attributes:
        method: What it makes of a sub-batch.
        own_loss: ``(module, sub-batch, memory) → loss`` evaluated in the extra passes in place of `training_step`, with
            a memory of the sub-batch that holds its ``"seed"`` in the pass at ``w``; ``None``: `training_step`.
        divergence: Whether the spread of the sub-batches' gradients is wanted.
    """

    @property
    def method(self) -> Method:
        """See above."""

    @property
    def own_loss(self) -> OwnLoss | None:
        """See above."""

    @property
    def divergence(self) -> bool:
        """See above."""

    def logged(self, penalty: Penalty, weight: float, suffix: str) -> dict[str, Tensor | float]:
        """What a step logs, by name."""


@dataclass(frozen=True)
class StepOptions:
    """How the penalty is evaluated; each as in `MultiPassCallback`.

    Raises:
        ValueError: If one doesn't fit.
    """

    num_sub_batches: int = 1
    split_fn: SplitFn | None = None
    gradient: str = "full"
    perturbed: int | None = None
    passes: str = "loop"
    scaling: str = "linear"
    losses: Sequence[int] | None = None
    optimizers: Sequence[int] | None = None
    manual_accumulation: int = 1

    def __post_init__(self) -> None:
        require_integer("num_sub_batches", self.num_sub_batches, least=1)
        require_choice("gradient", self.gradient, ("auto", *GRADIENTS))
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


class MultiPassStep:
    """Makes the form of a module's `training_step` that trains with a method.

    Args:
        options: How the penalty is evaluated; ``gradient`` is ``"full"`` or ``"shared"``.
        definition: The method.
        world_size: Processes.

    Attributes:
        options: How the penalty is evaluated.
        splitter: Splits the batches.
        choice: Whether the sub-batches' passes are a loop or one.
    """

    def __init__(self, options: StepOptions, definition: Definition, world_size: int = 1) -> None:
        self.options, self.definition, self.world_size = options, definition, world_size
        # With fewer sub-batches than processes there is one for all: each process has a part of it.
        count = max(options.num_sub_batches, world_size)
        perturbed = None if options.num_sub_batches == 1 else options.perturbed
        self.splitter = BatchSplitter(count, perturbed, options.split_fn)
        self.choice = PassChoice(options.passes, _gather)
        self._passes = ExtraPasses()
        self._left_out: Tensor | None = None  # on the device: asked once an epoch

    def take_left_out(self) -> int:
        """How many penalties were not finite, and left out, since this was last asked; waits for the device."""
        count, self._left_out = 0 if self._left_out is None else int(self._left_out), None
        return count

    def wrap(
        self, trainer: Trainer, module: LightningModule, training_step: TrainingStep, shown: float, weight: float
    ) -> TrainingStep:
        """The step of one batch.

        Args:
            trainer: The trainer.
            module: The module.
            training_step: Its own step.
            shown: The penalty's weight, as it is logged.
            weight: What its gradient is multiplied with: that, more where only some steps have it, less where not all
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
            self.log(trainer, module, penalty, shown)
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        return in_place_of(training_step, step)

    def count(self, penalty: Penalty) -> None:
        """Count a penalty that isn't finite."""
        left_out = torch.isnan(penalty.value).long()
        self._left_out = left_out if self._left_out is None else self._left_out + left_out

    def evaluated(
        self, trainer: Trainer, module: LightningModule, training_step: Callable[[Any], Any], pieces: Sequence[Any]
    ) -> Callable[[Any, Any], Any]:
        """``(sub-batch, copy of it) → what is returned for the copy``: the module's step, or the method's own loss."""
        loss = self.definition.own_loss
        if loss is None:
            return lambda piece, copy: training_step(copy)
        memories = {
            id(piece): memory for piece, memory in zip(pieces, self.memories(trainer, len(pieces)), strict=True)
        }
        return lambda piece, copy: loss(module, copy, memories[id(piece)])

    def memories(self, trainer: Trainer, count: int) -> list[dict[str, Any]]:
        """For the method's own loss: a memory a sub-batch, with a seed of its own on every process."""
        first = trainer.global_rank * count
        return [{"seed": _seed(trainer, first + i)} for i in range(count)]

    def context(
        self, trainer: Trainer, module: LightningModule, parameters: Sequence[nn.Parameter], kept: Sequence[int]
    ) -> Context:
        """What the method is to know of the sub-batches with these numbers on this process."""
        names = {id(p): name for name, p in module.named_parameters()}
        shared = self.options.num_sub_batches < self.world_size
        first = 0 if shared else trainer.global_rank * (self.options.num_sub_batches // self.world_size)
        return Context(
            [names.get(id(p), "a parameter of the optimizer") for p in parameters],
            [_seed(trainer, first + i) for i in kept],
            partial(mean_over_processes, parameters) if shared else None,
            self.definition.divergence,
        )

    def log(self, trainer: Trainer, module: LightningModule, penalty: Penalty, shown: float, suffix: str = "") -> None:
        """Log what the method says of a step."""
        module.log_dict(
            self.definition.logged(penalty, shown, suffix),  # type: ignore[arg-type]
            on_step=True,
            on_epoch=False,
            sync_dist=trainer.world_size > 1,
            batch_size=1,
        )

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
        _, weights = self._weights(pieces)
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
                penalty = choice.penalty(
                    evaluate,
                    [pieces.pieces[i] for i in kept],
                    parameters,
                    method=self.definition.method,
                    weights=[weights[i] for i in kept],
                    module=module,
                    extra_pass=state.extra_pass,
                    context=self.context(trainer, module, parameters, kept),
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


def _seed(trainer: Trainer, index: int) -> int:
    """Of what is drawn for a sub-batch of this step: a function of the global seed, the step and its number."""
    own = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return ((own * 2**31 + trainer.fit_loop.total_batch_idx) * 1009 + index) % 2**63


def mean_over_processes(parameters: Sequence[Tensor], found: Evaluation) -> Evaluation:
    """The mean of what all processes have found; a gradient that one of them lacks is zero there."""
    device = found.value.device
    value = found.value.double().reshape(1)
    held = torch.tensor([g is not None for g in found.gradient], device=device).double()
    numbers = torch.cat([value, held])
    torch.distributed.all_reduce(numbers)
    world = torch.distributed.get_world_size()
    gradient: list[Tensor | None] = [None] * len(parameters)
    anywhere = [i for i, count in enumerate(numbers[1:].tolist()) if count]
    for dtype in {parameters[i].dtype for i in anywhere}:  # one message, not one a parameter
        indices = [i for i in anywhere if parameters[i].dtype == dtype]
        pairs = [(parameters[i], found.gradient[i]) for i in indices]
        flat = torch.cat([(torch.zeros_like(p) if g is None else g).detach().flatten() for p, g in pairs])
        torch.distributed.all_reduce(flat)
        flat /= world
        for i, part in zip(indices, flat.split([parameters[i].numel() for i in indices]), strict=True):
            gradient[i] = part.view_as(parameters[i])
    return Evaluation(numbers[0] / world, tuple(gradient))

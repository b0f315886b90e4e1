"""What the regularized steps of both kinds of optimization have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.callbacks.multipass.batches.sub_batches import BatchSplitter, SubBatches
from lightning_fisher.callbacks.multipass.extra_pass import ExtraPasses
from lightning_fisher.callbacks.multipass.pass_choice import PassChoice
from lightning_fisher.callbacks.multipass.steps.options import Definition, StepOptions
from lightning_fisher.callbacks.multipass.steps.processes import gather, mean_over_processes, seed_of
from lightning_fisher.callbacks.multipass.training_step import TrainingStep
from lightning_fisher.exceptions import acting
from lightning_fisher.functional import Penalty
from lightning_fisher.functional.multipass.loop import Context


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
        known: What earlier steps have shown.
    """

    def __init__(self, options: StepOptions, definition: Definition, world_size: int = 1) -> None:
        self.options, self.definition, self.world_size = options, definition, world_size
        # With fewer sub-batches than processes there is one for all: each process has a part of it.
        count = max(options.num_sub_batches, world_size)
        perturbed = None if options.num_sub_batches == 1 else options.perturbed
        self.splitter = BatchSplitter(count, perturbed, options.split_fn)
        self.choice = PassChoice(options.passes, gather)
        self.known = ExtraPasses()
        self._left_out: Tensor | None = None  # on the device: asked once an epoch
        self._skipped = False

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
        raise NotImplementedError

    def rehearse(self, trainer: Trainer, module: LightningModule, training_step: TrainingStep) -> TrainingStep:
        """The module's own step, after the extra passes of a regularized one, which leave no trace.

        Raises:
            PartError: In the step, if they fail and the step of the whole batch doesn't.
        """
        raise NotImplementedError

    def take_left_out(self) -> int:
        """How many penalties were not finite, and left out, since this was last asked; waits for the device."""
        count, self._left_out = 0 if self._left_out is None else int(self._left_out), None
        return count

    def count(self, penalty: Penalty) -> None:
        """Count a penalty that isn't finite."""
        left_out = torch.isnan(penalty.value).long()
        self._left_out = left_out if self._left_out is None else self._left_out + left_out

    def skipped(self, module: LightningModule) -> None:
        """Say, once, that the module skips a part of a batch that it doesn't skip."""
        if not self._skipped:
            self._skipped = True
            warnings.warn(
                f"`training_step` of {type(module).__name__} skips a part of a batch, but not the batch: {acting()} "
                "leaves out the penalty of such steps.",
                stacklevel=2,
            )

    def follow(self, trainer: Trainer, module: LightningModule) -> None:
        """Behind the backward pass: follow the gradients to the optimizer, where they are one step's."""

    def unfollow(self) -> None:
        """Stop that."""

    def followed(self) -> None:
        """At the end of the batch: check them.

        Raises:
            OverwrittenError: If one of them was replaced by something else.
        """

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
        return [{"seed": seed_of(trainer, first + i)} for i in range(count)]

    def context(
        self, trainer: Trainer, module: LightningModule, parameters: Sequence[nn.Parameter], kept: Sequence[int]
    ) -> Context:
        """What the method is to know of the sub-batches with these numbers on this process."""
        names = {id(p): name for name, p in module.named_parameters()}
        shared = self.options.num_sub_batches < self.world_size
        first = 0 if shared else trainer.global_rank * (self.options.num_sub_batches // self.world_size)
        return Context(
            [names.get(id(p), "a parameter of the optimizer") for p in parameters],
            [seed_of(trainer, first + i) for i in kept],
            partial(mean_over_processes, parameters) if shared else None,
            self.definition.divergence,
            precise=self.options.precise,
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

    def weights(self, pieces: SubBatches) -> tuple[list[float], list[float]]:
        """Share of each part in the batch, and its weight in the penalty."""
        count = sum(part.size for part in pieces.parts)
        shares = [part.size / count for part in pieces.parts]
        scaled = [pieces.scale * share for share in shares]
        return shares, [w if part.perturbed else 0.0 for w, part in zip(scaled, pieces.parts, strict=True)]

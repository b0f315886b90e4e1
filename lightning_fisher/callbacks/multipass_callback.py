"""Train with gradients at perturbed points: the base of every callback with extra passes."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_fisher.announcements import announce
from lightning_fisher.arguments import require_integer, require_non_negative
from lightning_fisher.callbacks.multipass.batches.sub_batches import SplitFn
from lightning_fisher.callbacks.multipass.manual.step import ManualStep
from lightning_fisher.callbacks.multipass.state.hooks import backward_tables
from lightning_fisher.callbacks.multipass.steps.automatic import AutomaticStep
from lightning_fisher.callbacks.multipass.steps.base import MultiPassStep
from lightning_fisher.callbacks.multipass.steps.options import OwnLoss, StepOptions
from lightning_fisher.callbacks.multipass.switch.lr_drop import is_schedule_free
from lightning_fisher.callbacks.multipass.switch.phase import Phase, Schedule, check_schedule
from lightning_fisher.callbacks.multipass.switch.start import Start
from lightning_fisher.callbacks.multipass.training_step import TrainingStepPatch
from lightning_fisher.callbacks.requirements import refuse_other_gradients, require_supported, require_trainable
from lightning_fisher.exceptions import acts
from lightning_fisher.functional import Evaluation, Penalty, SubBatch
from lightning_fisher.functional.multipass.passes import Method
from lightning_fisher.functional.multipass.regularized import damping


class MultiPassCallback(Callback):
    r"""Train with ``L(B, w) + c Σ_i n_i/N m(B_i)``, m a method that looks at the loss at points near ``w``.

    A method is a subclass with a `penalty`: from the loss and its gradient at ``w``, and at any ``w + e``, it makes
    what it adds to the loss of a sub-batch ``B_i``, and the gradient of that, by linear combination:

        >>> from lightning_fisher import MultiPassCallback
        >>> class Sharpness(MultiPassCallback):
        ...     "Sharpness-aware minimization (Foret et al. 2021)."
        ...     def __init__(self, rho=0.05, **options):
        ...         super().__init__(**options)
        ...         self.rho = rho
        ...     def penalty(self, part):
        ...         return part.at(part.ascent(self.rho)) - part.here

    Everything else comes with it: any LightningModule whose `training_step` returns a mean loss (automatic
    optimization) or hands its losses to `self.manual_backward` (manual optimization), any optimizer that steps on
    ``.grad``, loss scaling, gradient accumulation, clipping, DDP, the switch, schedules, logging, resuming. Extra
    passes leave no trace: nothing of them is logged, and what they change is put back or refused by name. ``w`` are
    the parameters that the optimizers step. At ``weight=0`` training is bit for bit what it is without the callback;
    before the switch, too, but for what can't be put back (listed in docs/callback.md, "What cannot be put back").

    All passes of the method run in float32 or better with autocast and TF32 off, unless `precision` says otherwise.
    With ``gradient="shared"`` the pass at ``w`` is the training pass; with ``"full"`` the training pass is one more, in
    the Trainer's precision. With gradient accumulation every batch has perturbations of its own.

    What is added to a step is finite or nothing: where the penalty or an entry of its gradient is infinite or
    undefined, the process leaves its share out, the logged penalty is ``nan``, and the step is the plain one.

    Logs every step with the penalty, under the name of the method (`prefix`): ``PREFIX/penalty`` (without c; with
    several processes their mean) and ``PREFIX/weight`` (c).

    Args:
        weight: c ≥ 0.
        num_sub_batches: M, over all processes together: a multiple of their number (each takes M / world size), or 1:
            the whole batch of all processes, whose gradient at ``w`` they then share. A smaller last batch with fewer
            than 2 M samples is split into parts of two.
        start: ``"first_lr_drop"``: once the largest learning rate of an optimizer is at most 0.9 times the one before
            or half its peak (step schedules: the first step; cosine: half-way down; constant, schedule-free: never).
            Or an epoch, ``60``, ``1.5`` or ``"epoch:60"``, or an optimizer step, ``"step:1000"``
            (`trainer.global_step`, which counts those of all optimizers). 0: from the beginning.
        split_fn: ``(batch, parts) → list of sub-batches`` for batches that aren't tensors, lists of samples, packed
            sequences, tuples, mappings and dataclasses of those.
        weight_schedule: c after the switch: ``"constant"``; a ``"linear"`` or ``"cosine"`` ramp from 0; or ``"lr"``: c
            times the learning rate (the largest of all optimizers) over its highest value since the switch.
        ramp_epochs: Length of the ramp, in epochs (fractions count); with ``"lr"`` of a linear one, 0: none.
        gradient: Where the gradient of ``L`` comes from. ``"full"``: a pass of the whole batch. ``"shared"``: the mean
            of the gradients at ``w``, which saves that pass. The same where samples don't interact; with M > 1,
            batch-norm normalizes each sub-batch by itself (ghost batch-norm) and moves its running statistics M times
            a step. `training_step` then runs once a sub-batch, in the method's precision (below); what it
            logs is logged once, as the mean over the sub-batches, and what it returns is merged (`merge_outputs`).
            Numbers, moving averages (modules whose weights the step moves, with their buffers; lists and dictionaries
            of tensors that are all replaced) and weights that the step itself changes count once a step, lists, arrays,
            metrics and other buffers once a sub-batch. Automatic optimization only. ``"auto"``: ``"shared"`` where that
            is possible.
        perturbed: Only k of the M sub-batches, drawn anew every step, get extra passes; their penalty counts M/k
            times: an unbiased estimate, whose variance grows as M/k. ``None``: all M.
        every_n_steps: Only every n-th optimizer step (in manual optimization: batch) has the penalty, with n times the
            weight: the same on average over n steps, in bursts.
        scaling: How much what is evaluated weighs where that isn't all (``perturbed=k``, ``every_n_steps=n``).
            ``"linear"``: M/k and n times as much, which is unbiased. ``"sqrt"``: √(M/k) and √n times as much.
            ``"none"``: as much as without: steps and sub-batches without extra passes are plain ones.
        losses: Manual optimization: which losses have the penalty, by the order in which the step hands them to
            `manual_backward`, from 0; ``None``: all.
        optimizers: Manual optimization: only the parameters of these optimizers are perturbed and get the penalty's
            gradient, by their order in `configure_optimizers`, from 0; ``None``: those of all.
        manual_accumulation: Manual optimization: n where the step accumulates the gradients of n batches and divides
            each loss by n; the penalty is then that of the undivided loss, and divided by n too.
        passes: ``"loop"``: one sub-batch after the other. ``"vmap"`` and ``"auto"``: for `FisherRegularizer`.
        precision: Of the method's passes. ``"full"``: float32 or better, whatever the Trainer's, as methods need whose
            steps are so short that a rounded difference is noise. ``"trainer"``: the Trainer's, so ``"bf16-mixed"`` or
            TF32 where they are set, and through `torch.compile` where the network is compiled: faster, for steps as
            long as SAM's; what is logged is rounded. Not with ``"16-mixed"``, whose loss scaling these passes would
            need, nor with ``passes="vmap"``.

    Attributes:
        active: Whether the phase with the penalty has begun.
        switch_step: ``trainer.global_step`` at which it began, or ``None``.
        switch_epoch: Epoch in which it began, or ``None``.
        left_out: Steps of this process whose penalty was left out, as of the end of the last epoch.

    Raises:
        ValueError: If an argument doesn't fit; before training, if the module or the Trainer's set-up isn't supported.
    """

    prefix = "multipass"  # of logged names
    weight_name = "weight"  # of the argument
    differentiates = False  # whether the steps are so short that the passes have to be in full precision
    divergence = False  # whether `logged` reads the spread of the gradients
    own_loss: OwnLoss | None = None  # `(module, sub-batch, memory) → loss` of the extra passes, in place of the step's

    def __init__(
        self,
        weight: float = 1.0,
        *,
        num_sub_batches: int = 1,
        start: int | float | str = 0,
        split_fn: SplitFn | None = None,
        weight_schedule: Schedule = "constant",
        ramp_epochs: float = 0.0,
        gradient: Literal["auto", "full", "shared"] = "auto",
        perturbed: int | None = None,
        every_n_steps: int = 1,
        scaling: Literal["linear", "sqrt", "none"] = "linear",
        losses: list[int] | None = None,
        optimizers: list[int] | None = None,
        manual_accumulation: int = 1,
        passes: Literal["auto", "loop", "vmap"] = "loop",
        precision: Literal["full", "trainer"] = "full",
    ) -> None:
        self.options = StepOptions(
            num_sub_batches=num_sub_batches,
            split_fn=split_fn,
            gradient=gradient,
            perturbed=perturbed,
            passes=passes,
            scaling=scaling,
            losses=losses,
            optimizers=optimizers,
            manual_accumulation=manual_accumulation,
            precision=precision,
        )
        if self.differentiates and not self.options.precise:
            raise ValueError(
                f'Expected argument `precision` to be "full" for {type(self).__name__}, whose finite difference is '
                f"noise in less, but got {precision!r}."
            )
        require_integer("every_n_steps", every_n_steps, least=1)
        require_non_negative(self.weight_name, weight)
        check_schedule(self.weight_name, weight_schedule, ramp_epochs)
        if self.own_loss is not None and gradient == "shared":
            raise ValueError(
                f'Expected argument `gradient` to be "full" for {type(self).__name__}, whose extra passes have a loss '
                "of their own, but got 'shared'."
            )
        self.weight = float(weight)
        self.num_sub_batches = num_sub_batches
        self.split_fn, self.gradient, self.perturbed = split_fn, gradient, perturbed
        self.passes, self.scaling, self.precision = passes, scaling, precision
        self.start = Start(start)
        self.weight_schedule = weight_schedule
        self.ramp_epochs = float(ramp_epochs)
        self.every_n_steps = every_n_steps
        self._patch: TrainingStepPatch | None = None
        self._reset()

    def _reset(self) -> None:
        self.phase = Phase(self.start, self.weight_schedule, self.ramp_epochs)
        self.left_out = 0
        self._batches = 0  # of this fit
        self._step: MultiPassStep = AutomaticStep(
            dataclasses.replace(self.options, gradient=self._gradient(True)), self
        )

    @property
    def active(self) -> bool:
        """Whether the phase with the penalty has begun."""
        return self.phase.active

    @property
    def switch_step(self) -> int | None:
        """``trainer.global_step`` at which it began, or ``None``."""
        return self.phase.step

    @property
    def switch_epoch(self) -> int | None:
        """Epoch in which it began, or ``None``."""
        return self.phase.epoch

    # --- the method --------------------------------------------------------------------------------------------

    def penalty(self, part: SubBatch) -> Evaluation:
        """What the method adds to the loss of a sub-batch, without c, and the gradient of that.

        Args:
            part: ``part.here`` is the `Evaluation` at ``w``, ``part.at(e)`` that at ``w + e``, ``part.ascent(r)`` the
                step of length r up the slope, ``part.noise()`` standard normal numbers; see `SubBatch`.

        Returns:
            A linear combination of evaluations, or an `Evaluation` made of a value and a gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `penalty`.")

    @property
    def method(self) -> Method:
        """What is evaluated for every sub-batch."""
        return self.penalty

    def logged(self, penalty: Penalty, weight: float, suffix: str = "") -> dict[str, Tensor | float]:
        """What a step logs, by name.

        Args:
            penalty: What was evaluated.
            weight: c.
            suffix: Tells the losses of a manual step apart.
        """
        return {f"{self.prefix}/penalty{suffix}": penalty.value, f"{self.prefix}/{self.weight_name}": weight}

    @property
    def name(self) -> str:
        """Of the callback, in messages."""
        return type(self).__name__

    @property
    def trains(self) -> bool:
        """Whether the weight is ever another than zero."""
        return self.weight > 0

    # --- before training ---------------------------------------------------------------------------------------

    def _gradient(self, automatic: bool, hooked: bool = False) -> str:
        """``"full"`` or ``"shared"``; hooked: modules have backward hooks, which want a gradient of the whole batch."""
        if self.options.gradient == "auto":
            return "shared" if automatic and self.own_loss is None and not hooked else "full"
        return self.options.gradient

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what isn't supported before anything runs; a fit from scratch begins with the plain phase."""
        if stage != "fit":
            return
        acts(self.name)
        if trainer.global_step == 0:  # a checkpoint is loaded after this
            self._reset()
        others = [c for c in trainer.callbacks if isinstance(c, MultiPassCallback) and c is not self]  # type: ignore[attr-defined]
        if others:
            raise ValueError(
                f"Expected one callback with extra passes, but got {self.name} and {others[0].name}: each would run "
                "the other's passes in its own."
            )
        require_supported(trainer, pl_module)
        self.options.require_module(pl_module)
        self.options.require_trainer(trainer)
        self.options.require_processes(trainer.world_size)
        world, automatic = trainer.world_size, pl_module.automatic_optimization
        if isinstance(self._step, AutomaticStep) is not automatic or self._step.world_size != world:
            kind = AutomaticStep if automatic else ManualStep
            options = dataclasses.replace(self.options, gradient=self._gradient(automatic))
            self._step = kind(options, self, world)
        if automatic:
            gradient = self._gradient(automatic, bool(backward_tables(pl_module.modules())))
            self._step.options = dataclasses.replace(self.options, gradient=gradient)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what only shows once the optimizers exist."""
        require_trainable(trainer, pl_module)
        self._batches = 0
        if self.trains and not self.active and self.start.waits_for_drop and is_schedule_free(trainer.optimizers):
            warnings.warn(
                f"{self.name} waits for the first drop of the learning rate, but a schedule-free optimizer has "
                "none, so the regularized phase never begins; give `start` an epoch or a step.",
                stacklevel=2,
            )

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on to the end of the batch: is what the optimizer finds computed of these gradients?"""
        if self._patch is not None and self._batches <= 2:
            self._step.follow(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Refuse an optimizer that steps on other gradients than those the penalty is in."""
        self.phase.steps(optimizer)
        if self._patch is not None and self._batches <= 2:
            refuse_other_gradients(optimizer, self._step.known.without)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the phase never began."""
        waiting = self.trains and not self.active and self.start.waits_for_drop
        if waiting and not getattr(trainer, "fast_dev_run", False):
            announce(
                pl_module,
                f"{self.name}: the regularized phase never began, since the learning rate never dropped; "
                "training was the plain one (`start` takes an epoch or a step, too).",
            )

    # --- the switch --------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Latch the switch; replace `training_step` for this batch in the phase with the penalty."""
        self._restore()
        if self.trains and self._batches == 0:  # now, not epochs later at the switch
            self._step.splitter.split(trainer, batch)
        time = _time(trainer, batch_idx)
        if self.phase.update(trainer, pl_module, time) and time > 0 and self.trains:
            announce(
                pl_module,
                f"{self.name}: regularized phase begins after {self.switch_epoch} epochs, at step "
                f"{self.switch_step} (learning rate {self.phase.rate:g}, {self.described()})",
            )
        weight = self._weight(trainer, pl_module, time)
        if weight > 0 and self.phase.since(trainer, pl_module) % self.every_n_steps == 0:
            carried = weight * self.every_n_steps * damping(self.scaling, self.every_n_steps)
            step = self._step.wrap(trainer, pl_module, pl_module.training_step, weight, carried)
            self._patch = TrainingStepPatch(pl_module, step)
        elif self.trains and not self.active and self._batches == _rehearsed(trainer):
            step = self._step.rehearse(trainer, pl_module, pl_module.training_step)
            self._patch = TrainingStepPatch(pl_module, step)
        self._batches += 1

    def described(self) -> str:
        """The method's parameters, in a line."""
        return f"weight {self.weight:g}, M = {self.num_sub_batches}"

    def _weight(self, trainer: Trainer, pl_module: LightningModule, time: float) -> float:
        """The weight of the coming step."""
        return self.current_weight(time)

    def current_weight(self, time: float) -> float:
        """C at ``time`` (epochs since the start of training, fractions count): zero before the switch."""
        if not self.active:
            return 0.0
        return self.weight * self.phase.scheduled(time)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Give the module its own `training_step` back."""
        self._restore()
        self._step.followed()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also where a batch was skipped half-way. The first penalty left out is worth a warning."""
        self._restore()
        self._step.choice.settle()
        new = self._step.take_left_out()
        if new and not self.left_out:
            warnings.warn(
                f"{self.name} left out the penalty of {new} step(s) of epoch {trainer.current_epoch} on process "
                f"{trainer.global_rank}: the loss, or its gradient, at w or at a perturbed point is infinite or "
                f"undefined. Those steps were plain ones; `{self.prefix}/penalty` is nan there; the attribute "
                "`left_out` counts on.",
                stacklevel=2,
            )
        self.left_out += new

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Also when training fails or is interrupted."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """And at the end."""
        self._restore()

    def _restore(self) -> None:
        self._step.unfollow()
        if self._patch is not None:
            self._patch.undo()
            self._patch = None

    # --- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: whether and when the phase began, and the learning rates seen."""
        return {
            **self.phase.state_dict(),
            "left_out": self.left_out,
            "largest_batch": dict(self._step.splitter.largest),
            "passes_chosen": self._step.choice.chosen if self.options.passes == "auto" else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.phase.load_state_dict(state_dict)
        self.left_out = state_dict.get("left_out", 0)
        largest = state_dict["largest_batch"]  # a number where there could be one loader only
        self._step.splitter.largest = {"": largest} if isinstance(largest, int) else dict(largest)
        if self.options.passes == "auto":
            self._step.choice.chosen = state_dict.get("passes_chosen")


def _time(trainer: Trainer, batch_idx: int) -> float:
    return trainer.current_epoch + batch_idx / trainer.num_training_batches


def _rehearsed(trainer: Trainer) -> int:
    """The batch whose step is rehearsed: the second, in which state carried over shows; the only one, if it is."""
    only = getattr(trainer, "fast_dev_run", 0) == 1 or trainer.max_steps == 1
    return 0 if only or (trainer.num_training_batches == 1 and trainer.max_epochs == 1) else 1

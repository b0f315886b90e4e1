"""The Fisher regularizer as a Lightning callback (Algorithm 1)."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_fisher.arguments import require_choice, require_integer, require_non_negative
from lightning_fisher.callbacks.fisher_manual_step import FisherManualStep
from lightning_fisher.callbacks.fisher_step import FisherStep, PenaltyOptions
from lightning_fisher.callbacks.multipass.batches.sub_batches import SplitFn
from lightning_fisher.callbacks.multipass.switch import FirstDropOfAny, Start, is_schedule_free, largest_rate
from lightning_fisher.callbacks.multipass.training_step import TrainingStepPatch
from lightning_fisher.callbacks.requirements import refuse_per_sample_gradients, require_supported, require_trainable
from lightning_fisher.functional.multipass.regularized import damping

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES = ("constant", "linear", "cosine")
_MANUAL = {"losses": None, "optimizers": None, "manual_accumulation": 1}  # options of manual optimization only


class FisherRegularizer(Callback):
    r"""Train with ``L(B, w) + β R_α(w)`` from the first learning-rate drop on (Sec. 6, Algorithm 1, Sec. 7.2.1).

    ``R_α(w) = 1/M Σ_i [L(B_i, w) − L(B_i, w − α g_i)]``, ``g_i = ∇L(B_i, w)`` held constant, penalizes sub-batch
    gradients that diverge in magnitude and direction. Works with any LightningModule whose `training_step` returns a
    mean loss (automatic optimization) or hands its losses to `self.manual_backward` (manual optimization), and with any
    optimizer that steps on ``.grad``. ``w`` are the parameters that the optimizers step; others stay where they are.

    How: for the batches of the regularized phase, `training_step` is replaced by one that first runs it on the M
    sub-batches at ``w`` and at ``w − α g_i`` (nothing is logged, what it changes is put back or refused by name),
    then on the whole batch, and returns that loss carrying ``β ∇R_α``: its backward pass adds ``β ∇R_α`` to the
    gradients. Loss scaling, accumulation, the one all-reduce, clipping and every hook see one ordinary gradient. Before
    the switch, and at β = 0, training is bit for bit what it is without the callback.

    In manual optimization the passes run when the step hands a loss to `manual_backward`: the step is followed again on
    each sub-batch up to that loss, on copies of the weights, from the state at its beginning; where it called an
    optimizer, the weights become what they became. The penalty is that of this loss, at the weights as they are then,
    over the parameters that the next optimizers step.

    The sub-batch passes run in float32 with autocast and TF32 off: the finite difference is noise in anything less.
    Cost of a regularized step: three forward and backward passes of the batch instead of one, or fewer with
    ``gradient``, ``perturbed`` and ``every_n_steps``. Batch-norm layers see sub-batches of N/M samples in the extra
    passes only (except with ``gradient="shared"``).

    Logs every regularized step: ``fisher/penalty`` (R_α), ``fisher/beta``, and of the sub-batch gradients
    ``fisher/grad_norm_var`` and ``fisher/grad_cosine`` (Fig. 1; ``nan`` where a process has fewer than two sub-batches
    with a gradient); with several processes their mean over ranks.

    What is added to a step is finite or nothing: where R_α or an entry of its gradient is infinite or undefined, the
    process leaves its share of the penalty out, ``fisher/penalty`` is ``nan``, and the step is the plain one. So a loss
    of nan reaches the user's own handling (`detect_anomaly`, the loss scaler, a callback) as it would without this one.

    Args:
        beta: Weight β ≥ 0; the paper chooses it by validation from {1, 5, 10, 20, 30, 40, 50, 75, 100}.
        alpha: Step α > 0 of the finite difference.
        num_sub_batches: M, over all processes together (each takes M / world size); a smaller last batch with fewer
            than 2 M samples is split into parts of two.
        start: ``"first_lr_drop"``: once the largest learning rate of an optimizer is at most 0.9 times the one before
            or half its peak (step schedules: the first step; cosine: half-way down; constant, schedule-free: never).
            Or an epoch, ``60``, ``1.5`` or ``"epoch:60"``, or an optimizer step, ``"step:1000"``
            (`trainer.global_step`, which counts those of all optimizers).
        split_fn: ``(batch, parts) → list of sub-batches`` for batches that aren't tensors, lists of samples, packed
            sequences, tuples, mappings and dataclasses of those.
        beta_schedule: β after the switch: ``"constant"``, or a ``"linear"`` or ``"cosine"`` ramp from 0.
        ramp_epochs: Length of the ramp, in epochs (fractions count).
        gradient: Where the gradient of ``L`` comes from. ``"full"``: a pass of the whole batch, as the authors do;
            three evaluations. ``"shared"``: the mean of the ``g_i``; two evaluations. The same where samples don't
            interact; batch-norm normalizes each sub-batch of N/M samples by itself (ghost batch-norm) and moves
            its running statistics M times a step. `training_step` then runs once a sub-batch, in float32 whatever
            the Trainer's precision; what it logs is logged once, as the mean over the sub-batches, and what it
            returns is merged (`merge_outputs`). Numbers, moving averages and weights that the step itself changes count
            once a step, lists, arrays, metrics and buffers once a sub-batch. Automatic optimization only.
        perturbed: Only k of the M sub-batches, drawn anew every step, are evaluated at ``w − α g_i``; their penalty
            counts M/k times: an unbiased estimate of ``∇R_α``, whose variance grows as M/k. ``1 + 2k/M`` evaluations
            (``"shared"``: ``1 + k/M``). Over all processes together, like M. ``None``: all M.
        every_n_steps: Only every n-th optimizer step (in manual optimization: batch) is regularized, with n times the
            weight: the same penalty on average over n steps, in bursts (n β is the weight that the optimizer has to
            bear). On average ``1 + 2/n`` evaluations (``"shared"``: ``1 + 1/n``).
        passes: How the sub-batches are evaluated with the full gradient. ``"loop"``: one after the other. ``"vmap"``:
            all at once by `torch.func.vmap`, which calls `training_step` with batched tensors: the same up to rounding
            in two passes instead of 2 M, at the memory of 4 M gradients; for a GPU, which takes as long to be told of
            a pass of few samples as of one of many. The step has to be one that vmap can do, and may leave tensors in
            its modules only, not in other objects, where they would be of no use. ``"auto"``: the loop on a CPU and
            with deterministic algorithms; elsewhere the third regularized step is evaluated both ways, a few times,
            and vmap is taken if it can do the step, agrees with the loop and is faster, for as long as it can do it.
            All processes take the same. Manual optimization: the loop. Steps that draw random numbers can't be
            compared: the loop. A step with collectives of its own needs the
            same form on every process: don't leave it to ``"auto"``. Sub-batches of different sizes are a loop always.
        scaling: How much what is evaluated weighs where that isn't all (``perturbed=k``, ``every_n_steps=n``).
            ``"linear"``: M/k and n times as much, which is unbiased; its noise is that of a larger β. ``"sqrt"``:
            √(M/k) and √n times as much: the terms ``g_i − h_i`` of ReLU networks are nearly orthogonal, and this keeps
            their sum at its size over the steps, so that the same β does about the same in every form.
        losses: Manual optimization: which losses are regularized, by the order in which the step hands them to
            `manual_backward`, from 0; ``None``: all.
        optimizers: Manual optimization: only the parameters of these optimizers are perturbed and get the penalty's
            gradient, by their order in `configure_optimizers`, from 0; ``None``: those of all.
        manual_accumulation: Manual optimization: n where the step accumulates the gradients of n batches and divides
            each loss by n; R_α is then that of the undivided loss, and divided by n too.

    Attributes:
        active: Whether the regularized phase has begun.
        switch_step: ``trainer.global_step`` at which it began, or ``None``.
        switch_epoch: Epoch in which it began, or ``None``.
        passes_chosen: ``"loop"`` or ``"vmap"``: what was given, or what ``passes="auto"`` has chosen on this process;
            ``None`` until it has.
        left_out: Steps of this process whose penalty was left out, as of the end of the last epoch.

    Raises:
        ValueError: If an argument doesn't fit; before training, if the module or the Trainer's set-up isn't supported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_fisher import FisherRegularizer
        >>> trainer = Trainer(callbacks=[FisherRegularizer(beta=10.0)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        beta: float = 10.0,
        alpha: float = 1e-4,
        num_sub_batches: int = 8,
        start: int | float | str = "first_lr_drop",
        split_fn: SplitFn | None = None,
        beta_schedule: Schedule = "constant",
        ramp_epochs: float = 0.0,
        gradient: Literal["full", "shared"] = "full",
        perturbed: int | None = None,
        every_n_steps: int = 1,
        passes: Literal["auto", "loop", "vmap"] = "loop",
        scaling: Literal["linear", "sqrt"] = "linear",
        losses: list[int] | None = None,
        optimizers: list[int] | None = None,
        manual_accumulation: int = 1,
    ) -> None:
        self.options = PenaltyOptions(
            alpha=alpha,
            num_sub_batches=num_sub_batches,
            split_fn=split_fn,
            gradient=gradient,
            perturbed=perturbed,
            passes=passes,
            scaling=scaling,
            losses=losses,
            optimizers=optimizers,
            manual_accumulation=manual_accumulation,
        )
        require_integer("every_n_steps", every_n_steps, least=1)
        require_non_negative("beta", beta)
        require_non_negative("ramp_epochs", ramp_epochs)
        require_choice("beta_schedule", beta_schedule, SCHEDULES)
        if beta_schedule != "constant" and not ramp_epochs > 0:
            raise ValueError(f"Expected argument `ramp_epochs` to be positive for a ramp, but got {ramp_epochs!r}.")
        self.beta = float(beta)
        self.alpha = float(alpha)
        self.num_sub_batches = num_sub_batches
        self.split_fn, self.gradient, self.perturbed = split_fn, gradient, perturbed
        self.passes, self.scaling = passes, scaling
        self.start = Start(start)
        self.beta_schedule = beta_schedule
        self.ramp_epochs = float(ramp_epochs)
        self.every_n_steps = every_n_steps
        self._patch: TrainingStepPatch | None = None
        self._reset()

    def _reset(self) -> None:
        self.active = False
        self.switch_step: int | None = None
        self.switch_epoch: int | None = None
        self.left_out = 0
        self._batches = 0  # of this fit
        self._switch_time = 0.0  # in epochs, fractions included
        self._switch_batch = 0
        self._drop = FirstDropOfAny()
        self._step: FisherStep = FisherStep(self.options)

    @property
    def passes_chosen(self) -> str | None:
        """``"loop"`` or ``"vmap"``; ``None``: left to ``"auto"``, which hasn't decided."""
        return self._step.choice.chosen

    # --- before training ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what isn't supported before anything runs; a fit from scratch begins with the plain phase."""
        if stage == "fit":
            if trainer.global_step == 0:  # a checkpoint is loaded after this
                self._reset()
            require_supported(trainer, pl_module)
            self._require_options_of(pl_module)
            if isinstance(self._step, FisherManualStep) is pl_module.automatic_optimization:
                kind = FisherStep if pl_module.automatic_optimization else FisherManualStep
                self._step = kind(self.options)
            world = trainer.world_size
            if self.num_sub_batches % world:
                raise ValueError(
                    f"Expected argument `num_sub_batches` to be a multiple of the {world} processes, "
                    f"but got {self.num_sub_batches}."
                )
            perturbed = self.options.perturbed
            if perturbed is not None and perturbed % world:
                raise ValueError(
                    f"Expected argument `perturbed` to be a multiple of the {world} processes, but got {perturbed}."
                )

    def _require_options_of(self, pl_module: LightningModule) -> None:
        """Check what only one kind of optimization has."""
        options, name = self.options, type(pl_module).__name__
        if pl_module.automatic_optimization:
            given = [key for key, default in _MANUAL.items() if getattr(options, key) != default]
            if given:
                raise ValueError(
                    f"Expected argument `{given[0]}` to be left out in automatic optimization, where there is one "
                    f"loss, but got {getattr(options, given[0])!r} with {name}."
                )
        elif options.gradient == "shared" or options.passes == "vmap":
            key, value = ("gradient", "full") if options.gradient == "shared" else ("passes", "loop")
            raise ValueError(
                f'Expected argument `{key}` to be "{value}" in manual optimization, where the step of the whole batch '
                f"is the module's own, but got {getattr(options, key)!r} with {name}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what only shows once the optimizers exist."""
        require_trainable(trainer, pl_module)
        self._batches = 0
        if self.beta > 0 and not self.active and self.start.waits_for_drop and is_schedule_free(trainer.optimizers):
            warnings.warn(
                "FisherRegularizer waits for the first drop of the learning rate, but a schedule-free optimizer has "
                "none, so the regularized phase never begins; give `start` an epoch or a step.",
                stacklevel=2,
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Refuse an optimizer that steps on other gradients than those the penalty is in."""
        if self._patch is not None and self._batches <= 2:
            refuse_per_sample_gradients(optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the phase never began."""
        if (
            self.beta > 0
            and not self.active
            and self.start.waits_for_drop
            and not getattr(trainer, "fast_dev_run", False)
        ):
            pl_module.print(
                "FisherRegularizer: the regularized phase never began, since the learning rate never dropped; "
                "training was the plain one (`start` takes an epoch or a step, too)."
            )

    # --- the switch --------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Latch the switch; replace `training_step` for this batch in the regularized phase."""
        self._restore()
        if self.beta > 0 and self._batches == 0:  # now, not epochs later at the switch
            self._step.splitter.split(trainer, batch)
        rates = [largest_rate(optimizer) for optimizer in trainer.optimizers]
        steps = trainer.global_step // (1 if pl_module.automatic_optimization else max(1, len(rates)))
        dropped = self.active or self._drop.update(rates, steps, trainer.current_epoch)
        time = _time(trainer, batch_idx)
        if not self.active and self.start.reached(time, trainer.global_step, dropped):
            self.active = True
            self.switch_step, self.switch_epoch = trainer.global_step, trainer.current_epoch
            self._switch_time, self._switch_batch = time, trainer.fit_loop.total_batch_idx
            rate = max((r for r in rates if r is not None), default=math.nan)
            pl_module.print(
                f"FisherRegularizer: regularized phase begins after {self.switch_epoch} epochs, at step "
                f"{self.switch_step} (learning rate {rate:g}, β = {self.beta:g}, α = {self.alpha:g}, "
                f"M = {self.num_sub_batches})"
            )
        beta = self.current_beta(time)
        if beta > 0 and self._since_switch(trainer, pl_module) % self.every_n_steps == 0:
            weight = beta * self.every_n_steps * damping(self.options.scaling, self.every_n_steps)
            step = self._step.wrap(trainer, pl_module, pl_module.training_step, beta, weight)
            self._patch = TrainingStepPatch(pl_module, step)
        elif self.beta > 0 and not self.active and self._batches == _rehearsed(trainer):
            step = self._step.rehearse(trainer, pl_module, pl_module.training_step)
            self._patch = TrainingStepPatch(pl_module, step)
        self._batches += 1

    def _since_switch(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """Optimizer steps since the switch; batches in manual optimization, where a batch may take several."""
        if pl_module.automatic_optimization:
            return trainer.global_step - (self.switch_step or 0)
        return trainer.fit_loop.total_batch_idx - self._switch_batch

    def current_beta(self, time: float) -> float:
        """β at ``time`` (epochs since the start of training, fractions count): zero before the switch."""
        if not self.active:
            return 0.0
        if self.beta_schedule == "constant":
            return self.beta
        progress = min(max(time - self._switch_time, 0.0) / self.ramp_epochs, 1.0)
        return self.beta * (progress if self.beta_schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Give the module its own `training_step` back."""
        self._restore()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also where a batch was skipped half-way. The first penalty left out is worth a warning."""
        self._restore()
        self._step.choice.settle()
        new = self._step.take_left_out()
        if new and not self.left_out:
            warnings.warn(
                f"FisherRegularizer left out the penalty of {new} step(s) of epoch {trainer.current_epoch} on process "
                f"{trainer.global_rank}: the loss, or its gradient, at w or at w − α g is infinite or undefined. Those "
                "steps were plain ones; `fisher/penalty` is nan there; the attribute `left_out` counts on.",
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
        if self._patch is not None:
            self._patch.undo()
            self._patch = None

    # --- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: whether and when the phase began, and the learning rates seen."""
        return {
            "active": self.active,
            "switch_step": self.switch_step,
            "switch_epoch": self.switch_epoch,
            "switch_time": self._switch_time,
            "switch_batch": self._switch_batch,
            "left_out": self.left_out,
            "largest_batch": dict(self._step.splitter.largest),
            "passes_chosen": self.passes_chosen if self.options.passes == "auto" else None,
            "drop": self._drop.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.active = state_dict["active"]
        self.switch_step, self.switch_epoch = state_dict["switch_step"], state_dict["switch_epoch"]
        self._switch_time = state_dict["switch_time"]
        self._switch_batch = state_dict.get("switch_batch", 0)
        self.left_out = state_dict.get("left_out", 0)
        largest = state_dict["largest_batch"]  # a number where there could be one loader only
        self._step.splitter.largest = {"": largest} if isinstance(largest, int) else dict(largest)
        if self.options.passes == "auto":
            self._step.choice.chosen = state_dict.get("passes_chosen")
        self._drop.load_state_dict(state_dict["drop"])


def _time(trainer: Trainer, batch_idx: int) -> float:
    return trainer.current_epoch + batch_idx / trainer.num_training_batches


def _rehearsed(trainer: Trainer) -> int:
    """The batch whose step is rehearsed: the second, in which state carried over shows; the only one, if it is."""
    only = getattr(trainer, "fast_dev_run", 0) == 1 or trainer.max_steps == 1
    return 0 if only or (trainer.num_training_batches == 1 and trainer.max_epochs == 1) else 1

"""The Fisher regularizer as a Lightning callback (Algorithm 1)."""

from __future__ import annotations

import math
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_fisher.arguments import require_non_negative
from lightning_fisher.callbacks.multipass.batches.sub_batches import SplitFn
from lightning_fisher.callbacks.multipass.switch.lr_drop import averaging_steps
from lightning_fisher.callbacks.multipass.switch.phase import Schedule
from lightning_fisher.callbacks.multipass_callback import MultiPassCallback
from lightning_fisher.functional import Penalty
from lightning_fisher.functional.multipass.difference import FiniteDifference
from lightning_fisher.functional.multipass.finite_difference import check_penalty_options

AUTO = "auto"


class FisherRegularizer(MultiPassCallback):
    r"""Train with ``L(B, w) + β R_α(w)`` from the first learning-rate drop on (Sec. 6, Algorithm 1, Sec. 7.2.1).

    ``R_α(w) = 1/M Σ_i [L(B_i, w) − L(B_i, w − α g_i)]``, ``g_i = ∇L(B_i, w)`` held constant, penalizes sub-batch
    gradients that diverge in magnitude and direction. Works with any LightningModule whose `training_step` returns a
    mean loss (automatic optimization) or hands its losses to `self.manual_backward` (manual optimization), and with any
    optimizer that steps on ``.grad``. ``w`` are the parameters that the optimizers step; others stay where they are.

    How: for the batches of the regularized phase, `training_step` is replaced by one that first runs it on the M
    sub-batches at ``w`` and at ``w − α g_i`` (nothing is logged, what it changes is put back or refused by name),
    then on the whole batch, and returns that loss carrying ``β ∇R_α``: its backward pass adds ``β ∇R_α`` to the
    gradients. Loss scaling, accumulation, the one all-reduce, clipping and every hook see one ordinary gradient. At
    β = 0 training is bit for bit what it is without the callback; before the switch, too, but for what can't be put
    back when the second batch is run in parts on trial (listed in docs/callback.md, "What cannot be put back").

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
        beta: Weight β ≥ 0; the paper chooses it by validation from {1, 5, 10, 20, 30, 40, 50, 75, 100}. ``"auto"``:
            ``β = η s/(4α)`` with the learning rate η of the step (the largest of all optimizers) and the ``strength``
            s: what the implicit regularization of plain SGD suggests (Geiping et al. 2022, see
            `difference_penalty_gradient`); 25 at η = 0.01. With optimizers that average squared gradients (Adam,
            RMSprop) it rises linearly over the first 2/(1 − β₂) steps, in which they take the penalty in.
        alpha: Step α > 0 of the finite difference, or its length with ``step="normalized"``.
        num_sub_batches: M, over all processes together (each takes M / world size); a smaller last batch with fewer
            than 2 M samples is split into parts of two.
        start: ``"first_lr_drop"``: once the largest learning rate of an optimizer is at most 0.9 times the one before
            or half its peak (step schedules: the first step; cosine: half-way down; constant, schedule-free: never).
            Or an epoch, ``60``, ``1.5`` or ``"epoch:60"``, or an optimizer step, ``"step:1000"``
            (`trainer.global_step`, which counts those of all optimizers).
        split_fn: ``(batch, parts) → list of sub-batches`` for batches that aren't tensors, lists of samples, packed
            sequences, tuples, mappings and dataclasses of those.
        beta_schedule: β after the switch: ``"constant"``, a ``"linear"`` or ``"cosine"`` ramp from 0, or ``"lr"``: β
            times the learning rate over its highest value since the switch; the one of ``beta="auto"``, which is
            proportional to the learning rate by itself.
        ramp_epochs: Length of the ramp, in epochs (fractions count); with ``"lr"`` of a linear one, 0: none.
        gradient: Where the gradient of ``L`` comes from. ``"full"``: a pass of the whole batch, as the authors do;
            three evaluations. ``"shared"``: the mean of the ``g_i``; two evaluations. The same where samples don't
            interact; batch-norm normalizes each sub-batch of N/M samples by itself (ghost batch-norm) and moves
            its running statistics M times a step. `training_step` then runs once a sub-batch, in float32 whatever
            the Trainer's precision; what it logs is logged once, as the mean over the sub-batches, and what it
            returns is merged (`merge_outputs`). Numbers, moving averages and weights that the step itself changes count
            once a step, lists, arrays, metrics and other buffers once a sub-batch. Moving averages are modules whose
            weights the step moves (`AveragedModel`, a target network), with their buffers, and lists and dictionaries
            of tensors that are all replaced. Automatic optimization only.
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
            their sum at its size over the steps, so that the same β does about the same in every form. ``"none"``: as
            much as where all is evaluated.
        losses: Manual optimization: which losses are regularized, by the order in which the step hands them to
            `manual_backward`, from 0; ``None``: all.
        optimizers: Manual optimization: only the parameters of these optimizers are perturbed and get the penalty's
            gradient, by their order in `configure_optimizers`, from 0; ``None``: those of all.
        manual_accumulation: Manual optimization: n where the step accumulates the gradients of n batches and divides
            each loss by n; R_α is then that of the undivided loss, and divided by n too.
        difference: Between which points: ``"backward"``: ``w`` and ``w − α g_i``, the paper's. ``"forward"``: ``w + α
            g_i`` and ``w``. ``"central"``: ``w ± α g_i/2``, one evaluation more. See `difference_penalty_gradient`.
        step: ``"fixed"``: α g_i, the paper's. ``"normalized"``: of length α, the difference times ``‖g_i‖``.
        strength: s ≥ 0, with ``beta="auto"``.

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

    prefix = "fisher"
    weight_name = "beta"
    divergence = True

    def __init__(
        self,
        beta: float | Literal["auto"] = 10.0,
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
        scaling: Literal["linear", "sqrt", "none"] = "linear",
        losses: list[int] | None = None,
        optimizers: list[int] | None = None,
        manual_accumulation: int = 1,
        difference: Literal["backward", "forward", "central"] = "backward",
        step: Literal["fixed", "normalized"] = "fixed",
        strength: float = 1.0,
    ) -> None:
        check_penalty_options(alpha, num_sub_batches)
        self._method = FiniteDifference(alpha, difference, step)
        self.automatic = beta == AUTO
        if self.automatic and beta_schedule == "constant":
            beta_schedule = "lr"
        if self.automatic and beta_schedule != "lr":
            raise ValueError(
                f'Expected argument `beta_schedule` to be "lr" with `beta="auto"`, but got {beta_schedule!r}.'
            )
        require_non_negative("strength", strength)
        if strength != 1 and not self.automatic:
            raise ValueError(f'Expected argument `strength` to be 1.0 without `beta="auto"`, but got {strength!r}.')
        super().__init__(
            strength if self.automatic else beta,  # type: ignore[arg-type]
            num_sub_batches=num_sub_batches,
            start=start,
            split_fn=split_fn,
            weight_schedule=beta_schedule,
            ramp_epochs=ramp_epochs,
            gradient=gradient,
            perturbed=perturbed,
            every_n_steps=every_n_steps,
            passes=passes,
            scaling=scaling,
            losses=losses,
            optimizers=optimizers,
            manual_accumulation=manual_accumulation,
        )
        self.beta = AUTO if self.automatic else self.weight
        self.alpha, self.strength = float(alpha), float(strength)
        self.difference, self.step, self.beta_schedule = difference, step, beta_schedule

    @property
    def method(self) -> FiniteDifference:
        """The finite difference."""
        return self._method

    @property
    def passes_chosen(self) -> str | None:
        """``"loop"`` or ``"vmap"``; ``None``: left to ``"auto"``, which hasn't decided."""
        return self._step.choice.chosen

    def described(self) -> str:
        """β, α, M."""
        beta = AUTO if self.automatic else f"{self.weight:g}"
        return f"β = {beta}, α = {self.alpha:g}, M = {self.num_sub_batches}"

    def logged(self, penalty: Penalty, weight: float, suffix: str = "") -> dict[str, Tensor | float]:
        """Also the divergence of the sub-batch gradients."""
        return {
            f"fisher/penalty{suffix}": penalty.value,
            f"fisher/grad_norm_var{suffix}": penalty.divergence.norm_variance,
            f"fisher/grad_cosine{suffix}": penalty.divergence.cosine,
            "fisher/beta": weight,
        }

    def current_beta(self, time: float) -> float:
        """β at ``time`` (epochs since the start of training, fractions count): zero before the switch."""
        return self.current_weight(time)

    def current_weight(self, time: float) -> float:
        """See `current_beta`."""
        if not self.automatic or not self.active:
            return super().current_weight(time)
        rate = 0.0 if math.isnan(self.phase.rate) else self.phase.rate
        return self.phase.progress(time) * rate * self.strength / (4 * self.alpha)

    def _weight(self, trainer: Trainer, pl_module: LightningModule, time: float) -> float:
        weight = self.current_weight(time)
        if not self.automatic or self.ramp_epochs > 0 or weight == 0:
            return weight
        steps = max(averaging_steps(optimizer) for optimizer in trainer.optimizers)
        return weight * min((self.phase.since(trainer, pl_module) + 1) / steps, 1.0)

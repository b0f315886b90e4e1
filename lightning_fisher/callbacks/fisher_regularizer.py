"""The Fisher regulariser as a Lightning callback (Algorithm 1)."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_fisher.callbacks.batches import batch_size, part_sizes, split_batch
from lightning_fisher.callbacks.extra_passes import MetricSnapshot, TrainingStepPatch, carry_gradient, silenced
from lightning_fisher.callbacks.lr_drop import FirstDrop
from lightning_fisher.callbacks.start import Start
from lightning_fisher.callbacks.supported import require_supported, require_trainable
from lightning_fisher.functional import Penalty, penalty_of_losses
from lightning_fisher.functional.penalty import check_penalty_options

SplitFn = Callable[[Any, int], list[Any]]
Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES = ("constant", "linear", "cosine")


class FisherRegularizer(Callback):
    r"""Train with ``L(B, w) + β R_α(w)`` from the first learning-rate drop on (Sec. 6, Algorithm 1, Sec. 7.2.1).

    ``R_α(w) = 1/M Σ_i [L(B_i, w) − L(B_i, w − α g_i)]``, ``g_i = ∇L(B_i, w)`` held constant, penalises sub-batch
    gradients that diverge in magnitude and direction. Works with any optimizer and any LightningModule in automatic
    optimization whose `training_step` returns a mean loss.

    How: for the batches of the regularised phase, `training_step` is replaced by one that first runs it on the M
    sub-batches at ``w`` and at ``w − α g_i`` (nothing is logged, buffers, torchmetrics and random state are put back),
    then on the whole batch, and returns that loss carrying ``β ∇R_α``: its backward pass adds ``β ∇R_α`` to the
    gradients. Loss scaling, accumulation, the one all-reduce, clipping and every hook see one ordinary gradient. Before
    the switch, and at β = 0, training is bit for bit what it is without the callback.

    The sub-batch passes run in float32 with autocast and TF32 off: the finite difference is noise in anything less.
    Cost of a regularised step: three forward and backward passes of the batch instead of one. Batch-norm layers see
    sub-batches of N/M samples in the extra passes only.

    Logs every regularised step: ``fisher/penalty`` (R_α), ``fisher/beta``, and of the sub-batch gradients
    ``fisher/grad_norm_var`` and ``fisher/grad_cosine`` (Fig. 1); with several processes their mean over ranks.

    Args:
        beta: Weight β ≥ 0; the paper chooses it by validation from {1, 5, 10, 20, 30, 40, 50, 75, 100}.
        alpha: Step α > 0 of the finite difference.
        num_sub_batches: M, over all processes together (each takes M / world size); a smaller last batch with fewer
            than 2 M samples is split into parts of two.
        start: ``"first_lr_drop"``: once the optimizer's largest learning rate is at most 0.9 times the step before's or
            half its peak (step schedules: the first step; cosine: half-way down; constant: never). Or an epoch, as
            an integer or ``"epoch:60"``, or an optimizer step, ``"step:1000"``.
        split_fn: ``(batch, parts) → list of sub-batches`` for batches that aren't tensors, lists of samples, packed
            sequences, tuples, mappings and dataclasses of those.
        beta_schedule: β after the switch: ``"constant"``, or a ``"linear"`` or ``"cosine"`` ramp from 0.
        ramp_epochs: Length of the ramp, in epochs (fractions count).

    Attributes:
        active: Whether the regularised phase has begun.
        switch_step: ``trainer.global_step`` at which it began, or ``None``.
        switch_epoch: Epoch in which it began, or ``None``.

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
        start: str | int = "first_lr_drop",
        split_fn: SplitFn | None = None,
        beta_schedule: Schedule = "constant",
        ramp_epochs: float = 0.0,
    ) -> None:
        check_penalty_options(alpha, num_sub_batches)
        _require_number("beta", beta)
        _require_number("ramp_epochs", ramp_epochs)
        if beta_schedule not in SCHEDULES:
            raise ValueError(f"Expected argument `beta_schedule` to be one of {SCHEDULES}, but got {beta_schedule!r}.")
        if beta_schedule != "constant" and not ramp_epochs > 0:
            raise ValueError(f"Expected argument `ramp_epochs` to be positive for a ramp, but got {ramp_epochs!r}.")
        if split_fn is not None and not callable(split_fn):
            raise ValueError(f"Expected argument `split_fn` to be callable or None, but got {split_fn!r}.")
        self.beta = float(beta)
        self.alpha = float(alpha)
        self.num_sub_batches = num_sub_batches
        self.start = Start(start)
        self.split_fn = split_fn
        self.beta_schedule = beta_schedule
        self.ramp_epochs = float(ramp_epochs)
        self._patch: TrainingStepPatch | None = None
        self._reset()

    def _reset(self) -> None:
        self.active = False
        self.switch_step: int | None = None
        self.switch_epoch: int | None = None
        self._switch_time = 0.0  # in epochs, fractions included
        self._largest_batch = 0
        self._drop = FirstDrop()

    # --- before training ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what isn't supported before anything runs; a fit from scratch begins with the plain phase."""
        if stage == "fit":
            if trainer.global_step == 0:  # a checkpoint is loaded after this
                self._reset()
            require_supported(trainer, pl_module)
            world = trainer.world_size
            if self.num_sub_batches % world:
                raise ValueError(
                    f"Expected argument `num_sub_batches` to be a multiple of the {world} processes, "
                    f"but got {self.num_sub_batches}."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what only shows once the optimizers exist."""
        require_trainable(trainer, pl_module)

    # --- the switch --------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Latch the switch; replace `training_step` for this batch in the regularised phase."""
        self._restore()
        rate = max((float(group["lr"]) for group in trainer.optimizers[0].param_groups), default=0.0)
        dropped = self._drop.update(rate)
        if not self.active and self.start.reached(trainer.current_epoch, trainer.global_step, dropped):
            self.active = True
            self.switch_step, self.switch_epoch = trainer.global_step, trainer.current_epoch
            self._switch_time = _time(trainer, batch_idx)
            pl_module.print(
                f"FisherRegularizer: regularised phase begins at epoch {self.switch_epoch}, step {self.switch_step} "
                f"(learning rate {rate:g}, β = {self.beta:g}, α = {self.alpha:g}, M = {self.num_sub_batches})"
            )
        beta = self.current_beta(_time(trainer, batch_idx))
        if beta > 0:
            step = pl_module.training_step
            self._patch = TrainingStepPatch(pl_module, self._regularised(trainer, pl_module, step, beta))

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
        """Also where a batch was skipped half-way."""
        self._restore()

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

    # --- the step ----------------------------------------------------------------------------------------------

    def _regularised(
        self, trainer: Trainer, pl_module: LightningModule, training_step: Callable[..., Any], beta: float
    ) -> Callable[..., Any]:
        @functools.wraps(training_step)
        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = [p for p in pl_module.parameters() if p.requires_grad]
            penalty = self._penalty(
                trainer, pl_module, parameters, batch, lambda part: training_step(copy.deepcopy(part), *args, **kwargs)
            )
            output = training_step(batch, *args, **kwargs)
            if output is None or penalty is None:  # a batch the module skips
                return output
            self._log(trainer, pl_module, penalty, beta)
            loss = carry_gradient(_loss(output), beta, parameters, penalty.gradient)
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        # Lightning asks the signature whether the step takes a batch index.
        step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]
        return step

    def _penalty(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        parameters: list[torch.nn.Parameter],
        batch: Any,
        training_step: Callable[[Any], Any],
    ) -> Penalty | None:
        parts, weights = self._sub_batches(trainer, batch)

        def loss(part: Any) -> Callable[[], Tensor]:
            def evaluate() -> Tensor:
                output = training_step(part)
                if output is None:
                    raise _SkippedError
                return _loss(output)

            return evaluate

        metrics = MetricSnapshot(pl_module)
        try:
            with silenced(pl_module), torch.enable_grad():
                return penalty_of_losses(
                    [loss(part) for part in parts],
                    parameters,
                    alpha=self.alpha,
                    weights=weights,
                    module=pl_module,
                    on_pass=metrics.restore,
                )
        except _SkippedError:
            return None

    def _sub_batches(self, trainer: Trainer, batch: Any) -> tuple[list[Any], list[float]]:
        parts = self.num_sub_batches // trainer.world_size
        if self.split_fn is not None:
            pieces = list(self.split_fn(batch, parts))
            counts = [1] * len(pieces)
            with suppress(TypeError):  # a type only `split_fn` knows: equal parts
                counts = [batch_size(piece) for piece in pieces]
            return pieces, [count / sum(counts) for count in counts]
        count = batch_size(batch)
        self._largest_batch = max(self._largest_batch, count)
        if count < 2 * parts and count < self._largest_batch:
            parts = max(1, count // 2)
        if count < parts:
            raise ValueError(
                f"Expected argument `num_sub_batches` to be at most the {count} samples of a batch "
                f"({parts} sub-batches on each process), but got {self.num_sub_batches}."
            )
        sizes = part_sizes(count, parts)
        return split_batch(batch, sizes), [size / count for size in sizes]

    def _log(self, trainer: Trainer, pl_module: LightningModule, penalty: Penalty, beta: float) -> None:
        values: dict[str, Tensor | float] = {
            "fisher/penalty": penalty.value,
            "fisher/grad_norm_var": penalty.divergence.norm_variance,
            "fisher/grad_cosine": penalty.divergence.cosine,
            "fisher/beta": beta,
        }
        pl_module.log_dict(
            values,  # type: ignore[arg-type]
            on_step=True,
            on_epoch=False,
            sync_dist=trainer.world_size > 1,
            batch_size=1,
        )

    # --- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: whether and when the phase began, and the learning rates seen."""
        return {
            "active": self.active,
            "switch_step": self.switch_step,
            "switch_epoch": self.switch_epoch,
            "switch_time": self._switch_time,
            "largest_batch": self._largest_batch,
            "drop": self._drop.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.active = state_dict["active"]
        self.switch_step, self.switch_epoch = state_dict["switch_step"], state_dict["switch_epoch"]
        self._switch_time = state_dict["switch_time"]
        self._largest_batch = state_dict["largest_batch"]
        self._drop.load_state_dict(state_dict["drop"])


class _SkippedError(Exception):
    """`training_step` returned None for a sub-batch."""


def _loss(output: Any) -> Tensor:
    loss = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            "Expected `training_step` to return a loss tensor, a mapping with the key 'loss' or None, "
            f"but got {type(loss).__name__}."
        )
    return loss


def _time(trainer: Trainer, batch_idx: int) -> float:
    return trainer.current_epoch + batch_idx / trainer.num_training_batches


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"Expected argument `{name}` to be a non-negative number, but got {value!r}.")

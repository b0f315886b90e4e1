"""A `training_step` that trains with ``L(B, w) + β R_α(w)``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.callbacks.multipass.attribute_snapshot import AttributeSnapshot
from lightning_fisher.callbacks.multipass.batch_splitting import batch_size, fresh, split_batch
from lightning_fisher.callbacks.multipass.gradient_carrier import carry_gradient
from lightning_fisher.callbacks.multipass.logged_values import CollectedLogs, silenced
from lightning_fisher.callbacks.multipass.step_outputs import detached, loss_of, merge_outputs
from lightning_fisher.exceptions import first_line
from lightning_fisher.functional import Penalty, penalty_of_losses
from lightning_fisher.functional.multipass.execution import PassChoice
from lightning_fisher.functional.multipass.regularized import combine, damping
from lightning_fisher.functional.multipass.sub_batches import Part, draw_perturbed, merge_unperturbed, part_sizes

SplitFn = Callable[[Any, int], list[Any]]
TrainingStep = Callable[..., Any]


class RegularizedStep:
    """Makes the regularized form of a module's `training_step`; the arguments are those of `FisherRegularizer`.

    Attributes:
        largest_batch: Samples of the largest batch so far: a smaller one is the last of an epoch.
        choice: Whether the sub-batches' passes are a loop or one.
    """

    def __init__(
        self,
        alpha: float,
        num_sub_batches: int,
        gradient: str,
        perturbed: int | None,
        split_fn: SplitFn | None,
        passes: str,
        scaling: str,
    ) -> None:
        self.alpha = alpha
        self.num_sub_batches = num_sub_batches
        self.shared = gradient == "shared"
        self.perturbed = perturbed
        self.split_fn = split_fn
        self.largest_batch = 0
        self.choice = PassChoice(passes)
        self.scaling = scaling
        self._checks = 2  # thorough ones, of what the first steps change
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

        @functools.wraps(training_step)
        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = [p for p in module.parameters() if p.requires_grad]
            if not parameters:  # all frozen by now
                return training_step(batch, *args, **kwargs)

            def one(part: Any) -> Any:
                return training_step(fresh(part), *args, **kwargs)

            found = self._penalty(trainer, module, parameters, batch, one)
            if self.shared:
                if found is None:
                    return None
                penalty, output, scale = found
                assert penalty.loss is not None
                assert penalty.loss_gradient is not None
                gradient = combine(penalty.loss_gradient, penalty.gradient, weight * damping(self.scaling, scale))
                loss = carry_gradient(penalty.loss.to(parameters[0].dtype), 1.0, parameters, gradient)
            else:
                output = training_step(batch, *args, **kwargs)
                if output is None or found is None:  # a batch the module skips
                    return output
                penalty, _, scale = found
                carried = weight * damping(self.scaling, scale)
                loss = carry_gradient(loss_of(output), carried, parameters, penalty.gradient)
            left_out = torch.isnan(penalty.value).long()
            self._left_out = left_out if self._left_out is None else self._left_out + left_out
            _log(trainer, module, penalty, beta)
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        # Lightning asks the signature whether the step takes a batch index.
        step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]
        return step

    def rehearse(self, trainer: Trainer, module: LightningModule, training_step: TrainingStep) -> TrainingStep:
        """The module's own step, after the extra passes of a regularized one, which leave no trace.

        Raises:
            ValueError: In the step, if they fail and the step of the whole batch doesn't.
        """

        @functools.wraps(training_step)
        def step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            passes = "vmap" if self.choice.chosen == "vmap" else "loop"
            form = RegularizedStep(
                self.alpha, self.num_sub_batches, "full", self.perturbed, self.split_fn, passes, self.scaling
            )
            form.largest_batch = self.largest_batch
            parameters = [p for p in module.parameters() if p.requires_grad]

            def one(part: Any) -> Any:
                return training_step(fresh(part), *args, **kwargs)

            try:
                if parameters:
                    form._penalty(trainer, module, parameters, batch, one)
            except Exception as error:
                if isinstance(error, torch.OutOfMemoryError) or _is_ours(error):
                    raise
                training_step(batch, *args, **kwargs)  # the module's own failure, if it is one
                raise ValueError(
                    "FisherRegularizer needs a `training_step` that runs on parts of a batch, but that of "
                    f"{type(module).__name__} fails there ({first_line(error)}); keep no state from batch to batch, "
                    "use fewer `num_sub_batches`, or give a `split_fn`."
                ) from error
            return training_step(batch, *args, **kwargs)

        step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]
        return step

    def _penalty(
        self,
        trainer: Trainer,
        module: LightningModule,
        parameters: list[torch.nn.Parameter],
        batch: Any,
        training_step: Callable[[Any], Any],
    ) -> tuple[Penalty, Any, float] | None:
        """The penalty, with the shared gradient what the sub-batches' steps returned, merged, and M/k."""
        pieces, parts, scale = self._sub_batches(trainer, batch)
        count = sum(part.size for part in parts)
        if not self.shared:
            kept = [i for i, part in enumerate(parts) if part.perturbed]
            pieces, parts = [pieces[i] for i in kept], [parts[i] for i in kept]
        logs, undecided = CollectedLogs(module), self.choice.chosen is None
        outputs: dict[int, Any] = {}

        def evaluate(piece: Any) -> Tensor:
            output = training_step(piece)
            if output is None:
                raise _SkippedError
            return loss_of(output)

        def live(index: int) -> Callable[[], Tensor]:
            """The pass at ``w`` is the training pass: what it logs and returns counts."""

            def at_first_and_again() -> Tensor:
                if index in outputs:
                    return evaluate(pieces[index])
                with logs.during(parts[index].size / count):
                    output = training_step(pieces[index])
                if output is None:
                    raise _SkippedError
                outputs[index] = detached(output)
                return loss_of(output)

            return at_first_and_again

        @contextmanager
        def extra_pass() -> Iterator[None]:
            attributes = AttributeSnapshot(module, thorough=self._checks > 0)
            try:
                with silenced(module):
                    yield
            finally:
                attributes.restore()
            attributes.refuse_lost()

        shares = [part.size / count for part in parts]
        weights = [scale * share if part.perturbed else 0.0 for share, part in zip(shares, parts, strict=True)]
        try:
            with torch.enable_grad():
                if self.shared:
                    penalty = penalty_of_losses(
                        [live(index) for index in range(len(parts))],
                        parameters,
                        alpha=self.alpha,
                        weights=weights,
                        module=module,
                        loss_shares=shares,
                        extra_pass=extra_pass,
                    )
                else:
                    penalty = self.choice.penalty(
                        evaluate,
                        pieces,
                        parameters,
                        alpha=self.alpha,
                        weights=weights,
                        module=module,
                        extra_pass=extra_pass,
                        # The first steps are checked more, which takes time; later all memory of training is in use.
                        decide=self._checks <= 0,
                    )
        except _SkippedError:
            return None
        self._checks -= 1
        if undecided and self.choice.chosen is not None:
            module.print(f"FisherRegularizer: sub-batches are evaluated by {self.choice.chosen} ({self.choice.reason})")
        logs.replay()
        merged = None
        if self.shared and isinstance(outputs[0], Mapping):
            merged = merge_outputs([outputs[i] for i in range(len(parts))], shares, [part.size for part in parts])
        return penalty, merged, scale

    def require_splittable(self, trainer: Trainer, batch: Any) -> None:
        """Refuse a batch that can't be split into the sub-batches.

        Raises:
            ValueError: If it has fewer samples.
            TypeError: If it holds an object of a type that can't be cut.
        """
        self._sub_batches(trainer, batch)

    def _sub_batches(self, trainer: Trainer, batch: Any) -> tuple[list[Any], list[Part], float]:
        """The sub-batches, and what makes the penalty of the perturbed ones an estimate of that of all: M/k."""
        count = self.num_sub_batches // trainer.world_size
        if self.split_fn is not None:
            pieces = list(self.split_fn(batch, count))
            sizes = [1] * len(pieces)
            with suppress(TypeError):  # a type only `split_fn` knows: equal parts
                sizes = [batch_size(piece) for piece in pieces]
            drawn = self._draw(trainer, len(pieces))
            return pieces, [Part(*pair) for pair in zip(sizes, drawn, strict=True)], len(drawn) / sum(drawn)
        samples = batch_size(batch)
        self.largest_batch = max(self.largest_batch, samples)
        if samples < 2 * count and samples < self.largest_batch:
            count = max(1, samples // 2)
        if samples < count:
            raise ValueError(
                f"Expected argument `num_sub_batches` to be at most the {samples} samples of a batch "
                f"({count} sub-batches on each process), but got {self.num_sub_batches}."
            )
        drawn = self._draw(trainer, count)
        parts = merge_unperturbed(part_sizes(samples, count), drawn)
        return split_batch(batch, [part.size for part in parts]), parts, count / sum(drawn)

    def _draw(self, trainer: Trainer, count: int) -> list[bool]:
        """Which sub-batches are perturbed: from the number of the batch and the rank, so that a resumed run agrees."""
        perturbed = None if self.perturbed is None else self.perturbed // trainer.world_size
        generator = torch.Generator()
        batches = trainer.fit_loop.total_batch_idx
        generator.manual_seed(batches * trainer.world_size + trainer.global_rank)
        return draw_perturbed(count, perturbed, generator)


class _SkippedError(Exception):
    """`training_step` returned None for a sub-batch."""


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it: a refusal in its own words."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("lightning_fisher.")


def _log(trainer: Trainer, module: LightningModule, penalty: Penalty, beta: float) -> None:
    values: dict[str, Tensor | float] = {
        "fisher/penalty": penalty.value,
        "fisher/grad_norm_var": penalty.divergence.norm_variance,
        "fisher/grad_cosine": penalty.divergence.cosine,
        "fisher/beta": beta,
    }
    module.log_dict(
        values,  # type: ignore[arg-type]
        on_step=True,
        on_epoch=False,
        sync_dist=trainer.world_size > 1,
        batch_size=1,
    )


class TrainingStepPatch:
    """Replace `training_step` on the instance for one batch and leave nothing behind."""

    def __init__(self, module: nn.Module, step: Callable[..., Any]) -> None:
        self._module = module
        self._had = "training_step" in vars(module)
        self._before = vars(module).get("training_step")
        vars(module)["training_step"] = step

    def undo(self) -> None:
        """Restore the class's method, or the instance's own."""
        if self._had:
            vars(self._module)["training_step"] = self._before
        else:
            vars(self._module).pop("training_step", None)

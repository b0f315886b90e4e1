"""The input-output Jacobian's norm as a term of the loss, in any LightningModule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.arguments import require_integer, require_non_negative
from lightning_fisher.callbacks.multipass.step_outputs import loss_of
from lightning_fisher.callbacks.multipass.switch.start import Start
from lightning_fisher.callbacks.multipass.training_step import TrainingStepPatch, in_place_of
from lightning_fisher.functional import jacobian_penalty


class JacobianPenalty(Callback):
    r"""Train with ``L + λ R``, ``R = 1/(2N) Σ_i ‖∂z_i/∂x_i‖_F²``, the Jacobian of the outputs by the inputs.

    Jacobian regularization (Sokolić et al. 2017; Hoffman, Roberts & Yaida 2019); see `jacobian_penalty`. No extra pass
    at other weights: in the one forward pass of `training_step` the inputs of the network require gradients, and the
    term is added to the loss that it returns. So DDP, accumulation, loss scaling and batch-norm are those of a plain
    step. Every operation of the network has to be twice differentiable. Automatic optimization only; in manual
    optimization add `lightning_fisher.functional.jacobian_penalty` to your loss.

    Cost: about 2 to 3 plain steps for one projection, and their memory. A network under `torch.compile` runs eagerly in
    these steps: compiled graphs can't be differentiated twice.

    Logs ``jacobian/penalty`` (R) and ``jacobian/weight``.

    Args:
        weight: λ ≥ 0; 0: bit for bit as without the callback.
        projections: Random projections a sample, drawn by torch's default generator; ``None``: exact, by one backward
            pass an output.
        submodule: Name of the submodule that maps inputs to outputs (``"net"``); ``""``: the LightningModule itself,
            where `training_step` calls ``self(x)``. If it is called several times in a step, R is the mean.
        start: When it begins, as in `MultiPassCallback`, but no drop of the learning rate: an epoch, or
            ``"step:1000"``.

    Raises:
        ValueError: If an argument doesn't fit; in training, if the submodule isn't called, or not with real numbers.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_fisher import JacobianPenalty
        >>> trainer = Trainer(callbacks=[JacobianPenalty(weight=0.01)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        weight: float = 0.01,
        projections: int | None = 1,
        submodule: str = "",
        start: int | float | str = 0,
    ) -> None:
        require_non_negative("weight", weight)
        require_integer("projections", projections, least=1, or_none=True)
        if not isinstance(submodule, str):
            raise ValueError(f"Expected argument `submodule` to be the name of a submodule, but got {submodule!r}.")
        self.weight, self.projections, self.submodule = float(weight), projections, submodule
        self.start = Start(start)
        if self.start.waits_for_drop:
            raise ValueError(f"Expected argument `start` to be an epoch or a step, but got {start!r}.")
        self._patch: TrainingStepPatch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what isn't supported before anything runs."""
        if stage != "fit":
            return
        name = type(pl_module).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"JacobianPenalty works in automatic optimization, but {name} optimizes manually; add "
                "`lightning_fisher.functional.jacobian_penalty(outputs, inputs)` to its loss."
            )
        if self.submodule not in dict(pl_module.named_modules()):
            raise ValueError(
                f"Expected argument `submodule` to be the name of a submodule of {name}, but got {self.submodule!r}."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Replace `training_step` for this batch."""
        self._restore()
        time = trainer.current_epoch + batch_idx / trainer.num_training_batches
        if self.weight > 0 and self.start.reached(time, trainer.global_step, False):
            self._patch = TrainingStepPatch(pl_module, self._wrapped(trainer, pl_module, pl_module.training_step))

    def _wrapped(self, trainer: Trainer, module: LightningModule, training_step: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            with (
                watched(module.get_submodule(self.submodule)) as calls,
                torch.compiler.set_stance("force_eager"),  # compiled graphs are differentiated once
            ):
                output = training_step(*args, **kwargs)
            if output is None:
                return None
            if not calls:
                who = f"its submodule {self.submodule!r}" if self.submodule else "`self(inputs)`"
                raise ValueError(
                    f"Expected argument `submodule` to be the name of what {type(module).__name__}.training_step calls "
                    f"with the inputs, but got {self.submodule!r}, and {who} isn't called."
                )
            penalties = [jacobian_penalty(_full(outputs), inputs, self.projections) for inputs, outputs in calls]
            penalty = torch.stack(penalties).mean()
            loss = loss_of(output)
            loss = loss + self.weight * penalty.to(loss.dtype)
            module.log_dict(
                {"jacobian/penalty": penalty.detach(), "jacobian/weight": self.weight},
                on_step=True,
                on_epoch=False,
                sync_dist=trainer.world_size > 1,
                batch_size=1,
            )
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        return in_place_of(training_step, step)

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


def _full(outputs: Tensor) -> Tensor:
    """Half-precision outputs in float32: squares would overflow or vanish."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


@contextmanager
def watched(module: nn.Module) -> Iterator[list[tuple[list[Tensor], Tensor]]]:
    """Let the inputs of a module require gradients, and collect ``(inputs, outputs)`` of its calls.

    Raises:
        ValueError: In the call, if no input is a tensor of real numbers, or the output is no tensor.
    """
    calls: list[tuple[list[Tensor], Tensor]] = []
    waiting: list[list[Tensor]] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        found: list[Tensor] = []

        def variable(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            found.append(value if value.requires_grad else value.detach().requires_grad_())
            return found[-1]

        args, kwargs = tuple(map(variable, args)), {key: variable(value) for key, value in kwargs.items()}
        if not found:
            raise ValueError(
                "Expected inputs of real numbers, by which the Jacobian is taken, but "
                f"{type(module).__name__} gets none (token numbers have no gradient)."
            )
        waiting.append(found)
        return args, kwargs

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"Expected {type(module).__name__} to return a tensor of outputs, but got {type(output).__name__}."
            )
        calls.append((waiting.pop(), output))

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()

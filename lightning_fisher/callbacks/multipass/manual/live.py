"""A live step in manual optimization, each of whose losses can be evaluated again on parts of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_fisher.callbacks.multipass.batches.part import PartOfBatch
from lightning_fisher.callbacks.multipass.extra_pass import ExtraPasses, StepState
from lightning_fisher.callbacks.multipass.manual.events import (
    BACKWARD,
    Captured,
    Recorder,
    Replay,
    as_scalar,
    closure_of,
)
from lightning_fisher.callbacks.multipass.manual.patches import optimizer_methods, patched
from lightning_fisher.callbacks.multipass.manual.shadow import Shadows
from lightning_fisher.callbacks.multipass.state.hooks import module_hooks_watched
from lightning_fisher.exceptions import LightningFisherError, acting
from lightning_fisher.functional.evaluation.state.random_state import RandomStateSnapshot

OnLoss = Callable[["LiveStep", Tensor, int, list[int]], Tensor]


class ManualStepError(LightningFisherError, ValueError):
    """A manual step that can't be run again up to its losses."""


class StepMemory:
    """What earlier batches have shown: which optimizers step on the gradient of which loss."""

    def __init__(self) -> None:
        self.steps_of: dict[int, list[int]] = {}
        self.accumulates = False
        self.idle = 0  # batches in a row without a loss


class LiveStep:
    """One batch.

    Extra passes start from the state at the beginning of the step (weights, buffers, attributes, random numbers) and
    follow the live step up to the loss in question: where it called an optimizer, the weights become what they became;
    where it called `manual_backward`, the gradients. Optimizers and schedulers themselves do nothing meanwhile.

    Args:
        trainer: The trainer.
        module: The module.
        training_step: Runs its step on a batch.
        passes: What earlier steps have shown of its state.
        memory: And of its optimizers.
        precise: See `PartOfBatch`.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        training_step: Callable[[Any], Any],
        passes: ExtraPasses,
        memory: StepMemory,
        precise: bool = True,
    ) -> None:
        self._trainer, self._module, self._training_step = trainer, module, training_step
        self._memory, self._passes = memory, passes
        stepped = _held(trainer)
        others = [p for p in module.parameters() if p in passes.changed and all(p is not q for q in stepped)]
        self._stepped = stepped
        self.shadows = Shadows(trainer, module, [*stepped, *others])
        self._state = StepState(trainer, module, [*stepped, *others], passes)
        self._devices = {p.device for p in stepped}
        self._random = RandomStateSnapshot(self._devices)
        self._recorder = Recorder(trainer, self.shadows)
        self._schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._scouted: list[tuple[str, int]] | None = None
        self.part = PartOfBatch(trainer, passes, precise)

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that the step may run through."""
        return self._state.modules

    def run(self, batch: Any, on_loss: OnLoss, piece: Any) -> Any:
        """The step of the whole batch.

        Args:
            batch: The batch.
            on_loss: ``(this, loss, its number, numbers of its optimizers) → what is handed to `manual_backward```.
            piece: A part of the batch.
        """
        backward = self._module.manual_backward

        def live(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss, args, kwargs = as_scalar(loss, args, kwargs)
            number = self._recorder.number
            handed = on_loss(self, loss, number, self._optimizers_of(number, piece))
            backward(handed, *args, **kwargs)
            self._recorder.backward_done()

        record = self._recorder.recorded
        methods = [(o, name, record(i, name, getattr(o, name))) for o, i, name in optimizer_methods(self._trainer)]
        watched = module_hooks_watched(self.modules) if self._passes.thorough > 0 else nullcontext()
        with watched, patched([(self._module, "manual_backward", live), *methods]):
            output = self._training_step(batch)
        stepped = {event.optimizer for event in self._recorder.events}
        self._memory.idle = 0 if self._recorder.number else self._memory.idle + 1
        if self._memory.idle >= max(2, self._trainer.num_training_batches):
            raise self._without_loss()
        self._memory.accumulates |= bool(self._recorder.events) and stepped == {-1}
        return output

    def scout(self, piece: Any) -> None:
        """See in an extra pass what the step calls, before anything is trained on.

        Raises:
            ManualStepError: If it calls `backward` on the loss itself, or trains without `manual_backward`.
        """
        calls: list[tuple[str, int]] = []

        def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            calls.append((BACKWARD, -1))
            if kwargs.get("create_graph") or any(args[2:3]):
                raise ManualStepError(
                    f"{acting()} adds a constant to the gradients, but {type(self._module).__name__}.training_step "
                    "differentiates them once more (`create_graph=True`), which would be of the loss alone; use an "
                    "optimizer that steps on first derivatives."
                )
            with torch.no_grad():
                for _, copy in self.shadows.items():
                    if copy.requires_grad:
                        copy.grad = torch.zeros_like(copy)

        def method(number: int, name: str, original: Callable[..., Any] | None = None) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                closure = closure_of(args, kwargs)
                if closure is not None:
                    closure()
                calls.append((name, number))
                return None if original is None else original(*args, **kwargs)

            return call

        def direct(*args: Any, **kwargs: Any) -> None:
            raise ManualStepError(
                f"{acting()} needs `self.manual_backward(loss)` in manual optimization, but "
                f"{type(self._module).__name__}.training_step calls `backward()` on the loss itself; call "
                "`self.manual_backward(loss)`."
            )

        methods = [(owner, name, method(number, name)) for owner, number, name in optimizer_methods(self._trainer)]
        zeros = [(o, "zero_grad", method(i, "zero_grad", o.zero_grad)) for i, o in enumerate(self._trainer.optimizers)]
        wrapped = getattr(self._trainer.strategy, "_lightning_optimizers", [])
        zeros += [(o, "zero_grad", method(i, "zero_grad", o.zero_grad)) for i, o in enumerate(wrapped)]
        original = Tensor.backward
        try:
            Tensor.backward = direct  # type: ignore[method-assign, assignment]
            with self.rewound(), self.extra_pass(), patched([(self._module, BACKWARD, backward), *methods, *zeros]):
                output = self.part.run(self._training_step, piece)
        finally:
            Tensor.backward = original  # type: ignore[method-assign]
        loss = output.get("loss") if isinstance(output, Mapping) else output
        meant = any(number >= 0 and name != "zero_grad" for name, number in calls)
        meant |= isinstance(loss, Tensor) and loss.requires_grad
        if meant and all(name != BACKWARD for name, _ in calls):  # else it skips the batch
            raise self._without_loss()
        self._scouted = calls

    def _without_loss(self) -> ManualStepError:
        return ManualStepError(
            f"{acting()} needs `self.manual_backward(loss)` in manual optimization, but "
            f"{type(self._module).__name__}.training_step does not call it; call `self.manual_backward(loss)`, or set "
            "`automatic_optimization = True` and return the loss."
        )

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """The module as it was at the beginning of the step, then as it is now."""
        random = RandomStateSnapshot(self._devices)
        self.shadows.reset()
        with self._state.rewound():
            self._random.restore()
            try:
                yield
            finally:
                random.restore()

    @contextmanager
    def extra_pass(self, perturbed: list[nn.Parameter] | None = None) -> Iterator[None]:
        """A pass on the copies of the weights; nothing of it stays."""
        nothing = [(scheduler, "step", _nothing) for scheduler in self._schedulers]
        with self._state.extra_pass(), self.shadows.in_place(perturbed or []), patched(nothing):
            yield

    def loss_of(self, piece: Any, perturbed: list[nn.Parameter]) -> Tensor:
        """The loss that the live step is at, of a part of the batch.

        Raises:
            ManualStepError: If the step takes another course on the part.
        """
        replay = Replay(self._recorder, self.shadows, list(perturbed))
        followed = self.shadows.settled(perturbed, replay.arrived) if self._recorder.events else nullcontext()
        methods = [
            (owner, name, replay.method(number, name)) for owner, number, name in optimizer_methods(self._trainer)
        ]
        with followed, patched([(self._module, BACKWARD, replay.backward), *methods]):
            try:
                self.part.run(self._training_step, piece)
            except Captured as found:
                if replay.wrong is None:
                    return self.part.checked(found.loss)
        raise ManualStepError(
            f"{acting()} needs a `training_step` that calls `manual_backward` and its optimizers alike on the "
            f"batch and on parts of it, but that of {type(self._module).__name__} does not "
            f"({replay.wrong or 'a loss is missing'}); let neither depend on the values or the size of the batch."
        )

    def _optimizers_of(self, number: int, piece: Any) -> list[int]:
        """The optimizers that step on the gradient of the loss with this number."""
        current = self._recorder.current
        if current is not None:
            return [current.optimizer]
        ready = [
            index
            for index, optimizer in enumerate(self._trainer.optimizers)
            if any(p.requires_grad for group in optimizer.param_groups for p in group["params"])
        ]
        if len(ready) <= 1:
            return ready
        if self._scouted is None:
            self.scout(piece)
        assert self._scouted is not None
        found = steps_after(self._scouted, number)
        if found:
            self._memory.steps_of[number] = found
        return [i for i in self._memory.steps_of.get(number, ready) if i in ready]


def steps_after(calls: list[tuple[str, int]], number: int) -> list[int]:
    """The optimizers that step after the backward pass with this number and before they forget its gradient."""
    places = [place for place, (name, _) in enumerate(calls) if name == BACKWARD]
    if number >= len(places):
        return []
    found: list[int] = []
    forgotten: set[int] = set()
    for name, optimizer in calls[places[number] + 1 :]:
        if name == "zero_grad":
            forgotten.add(optimizer)
        elif name != BACKWARD and optimizer not in forgotten and optimizer not in found:
            found.append(optimizer)
    return sorted(found)


def _held(trainer: Trainer) -> list[nn.Parameter]:
    held = {id(p): p for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
    return list(held.values())


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass

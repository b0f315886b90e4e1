"""Passes of `training_step` that leave no trace: not in the module, the loggers, the optimizers or the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_fisher.callbacks.multipass.silence import logging_modules, silenced
from lightning_fisher.callbacks.multipass.state.attributes import AttributeSnapshot
from lightning_fisher.callbacks.multipass.state.averages import AverageBuffers, unstepped_modules
from lightning_fisher.callbacks.multipass.state.hooks import GradientHooks
from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError
from lightning_fisher.callbacks.multipass.state.tensors import SPARE, ChangedTensors, TensorSnapshot

THOROUGH = 2  # the first steps, in which everything that might change is compared


class SkippedError(Exception):
    """`training_step` returned None for a sub-batch."""


class ExtraPasses:
    """What the extra passes of a fit know of its module.

    Attributes:
        thorough: How many steps are still looked at closely.
        changed: Tensors that the step changes in place.
        deep: Large containers and arrays in which it changes something.
        promote: Whether the step relies on autocast for half-precision inputs or frozen layers.
        succeeded: Whether a step's extra passes have run to their end.
        rounded: Whether it has been said that the loss is in half precision.
        without: Parameters, by id, that got no gradient in the extra passes.
    """

    def __init__(self) -> None:
        self.thorough = THOROUGH
        self.changed = ChangedTensors()
        self.deep: dict[int, Any] = {}
        self.promote = False
        self.succeeded = self.rounded = False
        self.without: set[int] = set()


class State(NamedTuple):
    """The module's state at one time."""

    attributes: AttributeSnapshot
    tensors: TensorSnapshot
    averages: AverageBuffers

    def restore(self, since: State | None = None) -> None:
        """Put it back; ``since``: a state that everything is in."""
        self.attributes.restore(None if since is None else since.attributes)
        if since is None or since.tensors is not self.tensors:
            self.tensors.restore()
        if since is None or since.averages is not self.averages:
            self.averages.restore()

    def restore_numbers(self, since: State | None = None) -> None:
        """Put back what counts once a step: numbers, weights, moved averages; ``since``: see `restore`."""
        self.attributes.restore_numbers(None if since is None else since.attributes)
        self.tensors.restore()
        self.averages.restore()

    def same_as(self, other: State) -> bool:
        """Whether all parts are the same."""
        return all(map(is_, self, other))


class StepState:
    """The state of a module at the beginning of one step, to which every extra pass of that step returns.

    Args:
        trainer: The trainer.
        module: The module.
        perturbed: The parameters that are moved between the passes.
        passes: What earlier steps have shown.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, perturbed: Sequence[Tensor], passes: ExtraPasses
    ) -> None:
        self._trainer, self._module, self._passes = trainer, module, passes
        self._perturbed_ids = {id(p) for p in perturbed}
        names = {id(p): name for name, p in module.named_parameters()}
        self._perturbed = [(names.get(id(p), "a parameter of the optimizer"), p) for p in perturbed]
        own = module.named_parameters()
        self._apart = [(n, p) for n, p in own if p.requires_grad and id(p) not in self._perturbed_ids]
        self._limit = max(SPARE, 4 * sum(p.nbytes for p in perturbed))
        self._compared = True  # in the first pass of every step
        self._hooks: GradientHooks | None = None
        self._averages = list(unstepped_modules(module, self._perturbed_ids))
        self._logging = logging_modules(module)
        self._start = self._take()
        self._now: State | None = None  # behind the last training pass, if nothing has run since
        self._moved: list[tuple[Tensor, Tensor, Tensor]] = []  # weight, before and after the last training pass

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that the step may run through."""
        return self._start.attributes.modules

    def _take(self) -> State:
        trainer, thorough = self._trainer, self._passes.thorough > 0
        others: list[tuple[str, Any]] = [("an optimizer", o) for o in trainer.optimizers]
        others += [("a scheduler", config.scheduler) for config in trainer.lr_scheduler_configs]
        others += [("a callback", callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        return self._with(AttributeSnapshot(self._module, others, _around(trainer), thorough, self._passes.deep))

    def _with(self, attributes: AttributeSnapshot) -> State:
        tensors = [*self._module.named_parameters(), *attributes.tensors]
        changed = self._passes.changed
        tensors += [("a tensor that an earlier step changed", t) for t in changed]
        distinct: dict[int, tuple[str, Tensor]] = {}
        for name, t in tensors:
            if id(t) not in self._perturbed_ids:
                distinct.setdefault(id(t), (name, t))
        return State(
            attributes,
            TensorSnapshot(distinct.values(), changed, True, self._compares(), self._limit),
            AverageBuffers(self._averages, changed),
        )

    def _compares(self) -> bool:
        return self._passes.thorough > 0 or self._compared

    def _since_start(self) -> State:
        """The state now, of which the parts that have not changed are those of the start."""
        start = self._start
        attributes = start.attributes.again()
        if not attributes.alike(start.attributes):
            return self._with(attributes)
        return State(attributes, start.tensors.again(self._compares()), start.averages.again())

    @contextmanager
    def extra_pass(self) -> Iterator[None]:
        """From the state at the beginning, and back to it.

        Raises:
            LostStateError: On the way out, if the pass changed what can't be put back.
        """
        with self._pass():
            yield

    @contextmanager
    def extra_pass_between(self) -> Iterator[None]:
        """From the state at the beginning of the part that has just been trained on, and back to that of now."""
        now = self._since_start()
        self._start.restore(since=now)
        try:
            with self._pass():
                yield
        finally:
            now.restore(since=self._start)
            self._now = now

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Everything as it was at the beginning, then as it is now."""
        now = self._since_start()
        self._start.restore(since=now)
        try:
            yield
        finally:
            now.restore(since=self._start)

    def next_part(self) -> None:
        """The next training pass begins here; what counts once a step, numbers and weights, counts with it."""
        if self._now is not None and self._now.same_as(self._start):
            return
        self._start.restore_numbers(self._now)
        self._start = self._since_start()

    def training_pass(self, run: Callable[[], Any]) -> Any:
        """A training pass of a part: remembers what it makes of the optimizers' weights (normalizes them, say)."""
        self._now = None
        moving = [p for _, p in self._perturbed if p in self._passes.changed]
        before = [p.detach().clone() for p in moving]
        output = run()
        self._moved = [(p, b, p.detach().clone()) for p, b in zip(moving, before, strict=True)]
        return output

    def perturb_the_start(self) -> None:
        """Perturb those weights from where they were before the training pass."""
        with torch.no_grad():
            for p, before, after in self._moved:
                p.copy_(before + (p - after))

    def keep_moved(self) -> None:
        """Leave those weights as the training pass has made them."""
        with torch.no_grad():
            for p, _, after in self._moved:
                p.copy_(after)

    @contextmanager
    def _pass(self) -> Iterator[None]:
        attributes, tensors, _ = self._start
        compared, self._compared = self._compares(), False
        weights = TensorSnapshot(self._perturbed, self._passes.changed, compared, compared, self._limit)
        attributes.exchange()
        for _, parameter in self._apart:  # put back with the tensors: a pass without their gradients is enough
            parameter.requires_grad_(False)
        hooks = self._hooks = self._hooks or GradientHooks(self._module)
        gradients = [(n, p, p.grad, None if p.grad is None else p.grad._version) for n, p in self._perturbed]
        stop, loggers = self._trainer.should_stop, self._trainer.loggers
        try:
            self._trainer.loggers = [DummyLogger() for _ in loggers]
            with silenced(self._logging, type(self._module)):
                yield
        finally:
            hooked = hooks.remove_new()
            self._trainer.loggers, self._trainer.should_stop = loggers, stop
            attributes.restore()
            tensors.restore()
            weights.restore()
            for _, p, gradient, _ in gradients:
                if p.grad is not gradient:
                    p.grad = gradient
        changed = next((n for n, _, g, version in gradients if g is not None and g._version != version), None)
        if changed is not None:
            raise LostStateError(
                f"changes the gradient of {changed!r} in place", "do that in `on_before_optimizer_step`"
            )
        if hooked:
            raise LostStateError(
                "registers gradient hooks on parameters", "register them in `configure_optimizers` or `on_fit_start`"
            )
        attributes.refuse_lost()
        tensors.refuse_lost()
        weights.refuse_lost()


def _around(trainer: Trainer) -> list[Any]:
    """What a step may set attributes of, but that isn't looked into: the Trainer, the data."""
    loop = trainer.fit_loop
    found: list[Any] = [trainer, loop, loop.epoch_loop, trainer._logger_connector, trainer.strategy]
    found.append(trainer.datamodule)  # type: ignore[attr-defined]
    loaders = getattr(trainer.train_dataloader, "iterables", trainer.train_dataloader)  # of a `CombinedLoader`
    for loader in tree_flatten(loaders)[0]:
        for name in ("dataset", "sampler", "batch_sampler"):
            item = getattr(loader, name, None)
            while item is not None and not any(item is other for other in found):
                found.append(item)
                item = getattr(item, "dataset", None)  # of a subset
    return [item for item in found if hasattr(item, "__dict__")]

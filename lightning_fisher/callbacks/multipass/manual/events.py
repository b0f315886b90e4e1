"""What a live step does between its losses, recorded, so that it can be run again up to any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_fisher.callbacks.multipass.manual.shadow import Shadows

BACKWARD = "manual_backward"


@dataclass
class Event:
    """A call of `manual_backward`, or of a method of an optimizer that may change weights.

    Attributes:
        method: Its name.
        optimizer: The optimizer's number; −1 of `manual_backward`.
        before: The optimizer's weights before the call.
        after: And after it; ``None``: the call is under way.
        gradients: All gradients after `manual_backward`.
        losses: Calls of `manual_backward` in one call of the closure that the optimizer was given.
    """

    method: str
    optimizer: int = -1
    before: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, Tensor] | None = None
    gradients: dict[int, Tensor | None] = field(default_factory=dict)
    losses: int = 0


class Recorder:
    """The events of a live step, in order.

    Attributes:
        events: Those that are over, and the one under way.
        current: The call of an optimizer that is under way, or ``None``.
    """

    def __init__(self, trainer: Trainer, shadows: Shadows) -> None:
        self._optimizers, self._shadows = trainer.optimizers, shadows
        self.events: list[Event] = []
        self.current: Event | None = None
        self._inside = 0  # losses of the closure's call under way

    @property
    def number(self) -> int:
        """How many losses came before this one, of a closure those of one call."""
        return sum(1 if e.method == BACKWARD else e.losses for e in self.events if e is not self.current) + self._inside

    @property
    def inside(self) -> int:
        """How many losses came before this one in the call of the closure."""
        return self._inside

    def backward_done(self) -> None:
        """`manual_backward` has run."""
        if self.current is not None:
            self._inside += 1
            self.current.losses = self._inside
            return
        gradients = {id(p): None if p.grad is None else p.grad.detach().clone() for p, _ in self._shadows.items()}
        self.events.append(Event(BACKWARD, gradients=gradients))

    def recorded(self, number: int, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """The method of an optimizer, which takes down what it does to the weights."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.current is not None:  # a method that calls another
                return original(*args, **kwargs)
            event = self.current = Event(name, number, before=self._weights(number))
            self.events.append(event)
            args, kwargs = _with_closure(args, kwargs, self._closure)
            try:
                return original(*args, **kwargs)
            finally:
                event.after = self._weights(number)
                self.current, self._inside = None, 0

        return call

    def _closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside = 0
            return closure(*args, **kwargs)

        return call

    def _weights(self, number: int) -> dict[int, Tensor]:
        groups = self._optimizers[number].param_groups
        return {id(p): p.detach().clone() for group in groups for p in group["params"]}


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The closure among the arguments of an optimizer's method."""
    given = [value for value in (*args, *kwargs.values()) if callable(value)]
    return given[0] if given else None


def _with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], wrap: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (
        tuple(wrap(value) if callable(value) else value for value in args),
        {key: wrap(value) if callable(value) else value for key, value in kwargs.items()},
    )


def as_scalar(
    loss: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """A loss of several numbers that is handed to `backward` with a gradient, as one number, and the other arguments.

    Args:
        loss: The loss.
        args: What follows it.
        kwargs: By name.
    """
    gradient = args[0] if args else kwargs.get("gradient")
    if gradient is None:
        return loss, args, kwargs
    if args:
        return (loss * gradient).sum(), (None, *args[1:]), kwargs
    return (loss * gradient).sum(), args, kwargs | {"gradient": None}


class Captured(BaseException):  # not an `Exception`: a step may catch those
    """Carries a loss out of the step."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class Replay:
    """Stands in for `manual_backward` and the optimizers while the step is run again on a part of the batch.

    Args:
        recorder: What the live step has done so far; the loss it is at is the one to be carried out.
        shadows: What the step runs on.
        perturbed: Parameters that may differ from the live ones: what was done to those is added.
    """

    def __init__(self, recorder: Recorder, shadows: Shadows, perturbed: list[Tensor]) -> None:
        self._events, self._at = list(recorder.events), 0
        self._current, self._target = recorder.current, recorder.inside
        self._shadows, self._perturbed = shadows, {id(p) for p in perturbed}
        self._inside: int | None = None  # losses of a closure's call that are to be passed over
        self.wrong: str | None = None

    def arrived(self) -> bool:
        """Whether what follows is the loss to be carried out."""
        if self._inside is not None:
            return self._events[self._at] is self._current and self._inside == self._target
        return self._at == len(self._events)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The loss, if it is the one; else what the live gradients were after it."""
        loss, _, _ = as_scalar(loss, args, kwargs)
        if self._inside is not None:
            self._inside += 1
            if self._events[self._at] is self._current and self._inside == self._target + 1:
                raise Captured(loss)
            return
        if self._at == len(self._events):
            raise Captured(loss)
        event = self._next(BACKWARD, -1)
        if event is not None:
            for parameter, copy in self._shadows.items():
                gradient = event.gradients[id(parameter)]
                copy.grad = None if gradient is None else gradient.clone()

    def method(self, number: int, name: str) -> Callable[..., Any]:
        """A method of an optimizer, which does to the weights what it did in the live step."""

        def call(*args: Any, **kwargs: Any) -> None:
            if self._inside is not None:
                return
            closure = closure_of(args, kwargs)
            event = self._next(name, number, stay=True)
            if event is None:
                return
            after = event.after
            if after is None:
                after = {id(p): p.detach() for p, _ in self._shadows.items() if id(p) in event.before}
                self._move(event.before, after)
            if closure is not None:
                self._inside = 0
                closure()
                self._inside = None
            if event.after is not None:
                self._move(event.before, after)
            self._at += 1

        return call

    def _next(self, name: str, number: int, stay: bool = False) -> Event | None:
        if self.wrong is not None or self._at >= len(self._events):
            self.wrong = self.wrong or f"`{name}` comes before that loss"
            return None
        event = self._events[self._at]
        if (event.method, event.optimizer) != (name, number):
            self.wrong = f"`{name}` comes in place of `{event.method}`"
            return None
        self._at += not stay
        return event

    def _move(self, before: dict[int, Tensor], after: dict[int, Tensor]) -> None:
        with torch.no_grad():
            for parameter, copy in self._shadows.items():
                key = id(parameter)
                if key not in before:
                    continue
                if key in self._perturbed:
                    copy.add_(after[key] - before[key])
                else:
                    copy.copy_(after[key])

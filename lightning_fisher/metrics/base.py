"""Metrics that add one subset of training samples an update."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_fisher.exceptions import NonFiniteError


class SubsetMetric(Metric):
    """One float64 number a subset in each state, concatenated over processes.

    Processes may have made different numbers of updates, or none. Lower values are better. A subset whose outputs,
    losses or gradients aren't finite counts as ``nan``, with a warning: a long run should not die of a measurement, nor
    the other processes wait for one that did.

    Args:
        kwargs: Arguments of :class:`torchmetrics.Metric` (``sync_on_compute``, ``process_group``, …).

    Attributes:
        states: The names of the states.
    """

    higher_is_better: bool | None = False
    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    states: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.states:
            self.add_state(name, [], dist_reduce_fx="cat")

    @property
    def dtype(self) -> torch.dtype:
        """Float64 whatever the module around the metric is converted to, also in a process without an update."""
        return torch.float64

    def add_subset(self, **values: Tensor) -> None:
        """Append one scalar to every state."""
        for name in self.states:
            value = values[name].detach().to(self.device, torch.float64).reshape(1)
            getattr(self, name).append(value)

    @contextmanager
    def non_finite_is_nan(self, **known: Tensor) -> Iterator[None]:
        """Add a subset of ``nan`` where the body raises `NonFiniteError`; ``known`` states keep their value."""
        try:
            yield
        except NonFiniteError as error:
            warnings.warn(f"{error} {type(self).__name__} counts the subset as nan.", stacklevel=4)
            self.add_subset(**{name: known.get(name, torch.tensor(torch.nan)) for name in self.states})

    def subsets(self, name: str) -> Tensor:
        """The values of a state, ``[T]`` float64; T may be 0."""
        state: Tensor | list[Tensor] = getattr(self, name)
        if isinstance(state, Tensor):  # synchronized
            return state.double()
        return torch.cat(state).double() if state else torch.empty(0, dtype=torch.float64, device=self.device)


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation (divisor T − 1) of ``[T]`` values.

    Returns:
        Two scalars; the mean is ``nan`` where T = 0, the standard deviation where T < 2.
    """
    return values.mean(), values.std() if values.numel() > 1 else values.new_full((), torch.nan)

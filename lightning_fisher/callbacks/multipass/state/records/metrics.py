"""The state of torchmetrics objects."""

from __future__ import annotations

import collections
import copy
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.callbacks.multipass.state.records.comparison import unchanged
from lightning_fisher.callbacks.multipass.state.records.modules import OF_MODULES
from lightning_fisher.callbacks.multipass.state.records.record import MISSING, Record


class MetricState(Record):
    """The state of a torchmetrics object.

    Args:
        metric: The metric.
        compared: Look whether values change that torch's version counters don't tell of (through ``.data``, by numpy).
        copied: The metrics in which they do; learns.
    """

    def __init__(self, metric: nn.Module, compared: bool, copied: dict[int, Any]) -> None:
        self._metric, self._compared, self._copied = metric, compared, copied
        self._attributes = vars(metric)
        self._held = {name: value for name, value in self._attributes.items() if _is_metric_state(name, value)}
        self._values = {name: _copy(value) for name, value in self._held.items()}
        self._versions = list(map(_version, self._held.values()))

    def _same(self) -> bool:
        """Whether nothing has changed, as far as torch tells."""
        now = [self._attributes.get(name, MISSING) for name in self._held]
        return (
            id(self._metric) not in self._copied
            and all(map(is_, now, self._held.values()))
            and list(map(_version, now)) == self._versions
            and all(map(_same_items, now, self._values.values()))
        )

    def renewed(self) -> Record:
        """See `Record`."""
        return self if self._same() else MetricState(self._metric, self._compared, self._copied)

    def restore(self) -> bool:
        """See `Record`."""
        if self._same():
            if not self._compared or all(map(_equal, self._held.values(), self._values.values())):
                return False
            self._copied[id(self._metric)] = self._metric
        for name, value in self._values.items():
            self._held[name] = self._attributes[name] = _copy(value)
        self._versions = list(map(_version, self._held.values()))
        return False


def _is_metric_state(name: str, value: Any) -> bool:
    return name not in OF_MODULES and isinstance(
        value, (Tensor, bool, int, float, str, type(None), list, tuple, dict, set, collections.deque)
    )


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _same_items(now: Any, before: Any) -> bool:
    """Whether two containers hold the same; anything else is looked at elsewhere."""
    if isinstance(now, set):
        return bool(now == before)
    return not isinstance(now, (list, dict, collections.deque)) or unchanged(now, before)


def _version(value: Any) -> Any:
    """What grows with every change in place; something that no other is equal to where torch doesn't count."""
    if not isinstance(value, Tensor):
        return 0
    return object() if value.is_inference() else (value._version, value.data_ptr())


def _equal(value: Any, before: Any) -> bool:
    """Bit for bit, if they are tensors."""
    if not isinstance(value, Tensor):
        return True
    alike = value.shape == before.shape and value.dtype == before.dtype
    return alike and torch.equal(value.nan_to_num(), before.nan_to_num())

"""What `training_step` logs where it runs once a sub-batch: collected, and logged once a step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_fisher.callbacks.multipass.silence import logging_modules
from lightning_fisher.callbacks.multipass.step_outputs import weighted_mean


class CollectedLogs:
    """What `log` and `log_dict` of the LightningModules in a tree are called with, to be logged once at the end.

    A number is logged as its mean over the sub-batches, weighted by their share of the batch; a torchmetrics object,
    which has seen every sub-batch by then, as itself. An explicit ``batch_size`` adds up.
    """

    def __init__(self, module: nn.Module) -> None:
        self._owners: list[Any] = logging_modules(module)
        self._calls: dict[tuple[int, str], list[tuple[float, Any, dict[str, Any]]]] = {}

    @contextmanager
    def during(self, share: float) -> Iterator[None]:
        """Collect while a sub-batch with this share of the batch runs."""
        before: list[dict[str, Any]] = [
            {name: vars(m)[name] for name in ("log", "log_dict") if name in vars(m)} for m in self._owners
        ]
        try:
            for index, owner in enumerate(self._owners):
                log = _Collector(self._calls, index, share, inspect.signature(owner.log))
                vars(owner).update(log=log, log_dict=log.log_dict)
            yield
        finally:
            for owner, saved in zip(self._owners, before, strict=True):
                for name in ("log", "log_dict"):
                    vars(owner).pop(name, None)
                vars(owner).update(saved)

    def replay(self) -> None:
        """Log everything once."""
        for (index, name), calls in self._calls.items():
            _, last, options = calls[-1]
            sizes = [given.get("batch_size") for _, _, given in calls]
            if all(size is not None for size in sizes):
                options = {**options, "batch_size": sum(sizes)}  # type: ignore[arg-type]
            value = last if isinstance(last, Metric) else weighted_mean([(s, v) for s, v, _ in calls])
            self._owners[index].log(name, value, **options)


class _Collector:
    """Stands in for one module's `log`."""

    def __init__(self, calls: dict[Any, Any], owner: int, share: float, signature: inspect.Signature) -> None:
        self._calls, self._owner, self._share, self._signature = calls, owner, share, signature

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        options = dict(self._signature.bind(*args, **kwargs).arguments)
        options.update(options.pop("kwargs", {}))
        name, value = options.pop("name"), options.pop("value")
        if isinstance(value, Tensor):
            value = value.detach()
        self._calls.setdefault((self._owner, name), []).append((self._share, value, options))

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self(name, value, *args, **kwargs)

"""What `training_step` logs and returns, one value a step where it runs once a sub-batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class CollectedLogs:
    """What `log` and `log_dict` of the LightningModules in a tree are called with, to be logged once at the end.

    A number is logged as its mean over the sub-batches, weighted by their share of the batch; a torchmetrics object,
    which has seen every sub-batch by then, as itself. An explicit ``batch_size`` adds up.
    """

    def __init__(self, module: nn.Module) -> None:
        self._owners: list[Any] = [m for m in module.modules() if hasattr(m, "log_dict")]
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


def weighted_mean(values: Sequence[tuple[float, Any]]) -> Any:
    """Mean of ``(weight, number or tensor)`` pairs."""
    total = sum(weight for weight, _ in values)
    tensors = [value for _, value in values if isinstance(value, Tensor)]
    if tensors:
        dtype = tensors[0].dtype if tensors[0].is_floating_point() else torch.get_default_dtype()
        parts = [torch.as_tensor(v, dtype=dtype, device=tensors[0].device) * (weight / total) for weight, v in values]
        return torch.stack(parts).sum(0)
    return sum(weight * value for weight, value in values) / total


def merge_outputs(
    outputs: Sequence[Mapping[str, Any]], shares: Sequence[float], sizes: Sequence[int]
) -> dict[str, Any]:
    """One mapping of the mappings that `training_step` returned for the sub-batches.

    Scalar tensors and numbers: their mean, weighted by the share of the batch; tensors with one entry a sample:
    concatenated; anything else: a list, one item a sub-batch.
    """
    merged: dict[str, Any] = {}
    for key in outputs[0]:
        values = [output.get(key) for output in outputs]
        if all(_is_number(value) for value in values):
            merged[key] = weighted_mean(list(zip(shares, values, strict=True)))
        elif all(
            isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
            for value, size in zip(values, sizes, strict=True)
        ):
            merged[key] = torch.cat(values)  # type: ignore[arg-type]
        else:
            merged[key] = values
    return merged


def _is_number(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.ndim == 0) or isinstance(value, (int, float))


def detached(output: Any) -> Any:
    """What a `training_step` returned, without its graph; ``None`` where that is the loss alone."""
    if not isinstance(output, Mapping):
        return None
    return {key: value.detach() if isinstance(value, Tensor) else value for key, value in output.items()}


def loss_of(output: Any) -> Tensor:
    """The loss in what a `training_step` returned.

    Raises:
        TypeError: If there is none.
    """
    loss = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            "Expected `training_step` to return a loss tensor, a mapping with the key 'loss' or None, "
            f"but got {type(loss).__name__}."
        )
    return loss

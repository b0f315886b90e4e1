"""What `training_step` returns: its loss, and one value a step where it runs once per sub-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.exceptions import LightningFisherError


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


class OutputError(LightningFisherError, TypeError):
    """What `training_step` returned holds no loss."""


def loss_of(output: Any) -> Tensor:
    """The loss in what a `training_step` returned.

    Raises:
        OutputError: If there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        missing = isinstance(output, Mapping) and "loss" not in output
        raise OutputError(
            "Expected `training_step` to return a loss tensor, a mapping with the key 'loss' or None, "
            f"but got {f'a mapping with {list(output)}' if missing else type(loss).__name__}."
        )
    return loss

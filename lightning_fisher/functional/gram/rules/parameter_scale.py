"""Gradients with respect to relative changes: each is multiplied by the size of what its weight belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["none", "layer", "filter", "element"]


def parameter_scale(parameter: Tensor, scale: Scale) -> Tensor:
    """What the gradient of a parameter is multiplied by.

    Args:
        parameter: A tensor of weights.
        scale: ``"none"``: 1. ``"layer"``: the tensor's Frobenius norm. ``"filter"``: for every entry of dimension 0, an
            output unit in torch's linear layers and convolutions, the norm of its weights. ``"element"``: every
            weight's absolute value. A bias, or any other tensor with fewer than two dimensions, has one weight for
            each unit: ``"filter"`` is ``"element"`` there.

    Returns:
        Float64, broadcastable to the parameter.
    """
    if scale == "none":
        return torch.ones((), dtype=torch.float64, device=parameter.device)
    values = parameter.detach().double()
    if scale == "layer":
        return torch.linalg.vector_norm(values)
    if scale == "element" or values.ndim < 2:
        return values.abs()
    return torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)


def squared_norms(parameters: Sequence[Tensor]) -> list[float]:
    """``‖W‖_F²`` of every parameter, read from the device at once."""
    norms = [parameter_scale(parameter, "layer").square() for parameter in parameters]
    return [float(value) for value in torch.stack(norms).tolist()]


def column_scales(parameters: Sequence[Tensor], scale: Scale) -> Tensor:
    """``[W]``: what the columns of J are multiplied by, the parameters one after the other."""
    return torch.cat([parameter_scale(p, scale).expand_as(p).flatten() for p in parameters])

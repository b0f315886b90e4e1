"""What a classifier returns: logits, and the linear layer that makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.exceptions import NonFiniteError, UndefinedMeasureError
from lightning_fisher.functional.evaluation.differentiable import evaluate


def require_logits(outputs: Any, targets: Tensor) -> Tensor:
    """Refuse outputs and targets that are not logits ``[N, K]`` and class indices ``[N]``.

    Raises:
        ValueError: Saying what they are.
        NonFiniteError: If a logit is infinite or nan.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"Expected the module to return logits of shape [N, K], K ≥ 2, but got {got}.")
    if not isinstance(targets, Tensor):
        raise ValueError(f"Expected argument `targets` to be class indices [N], but got {type(targets).__name__}.")
    if targets.is_floating_point() or targets.shape != outputs.shape[:1]:
        raise ValueError(
            f"Expected argument `targets` to be class indices of shape {(len(outputs),)}, "
            f"but got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    if not bool(((targets >= 0) & (targets < outputs.shape[1])).all()):
        raise ValueError(
            f"Expected class indices in `targets` to be 0…{outputs.shape[1] - 1}, "
            f"but got {int(targets.min())}…{int(targets.max())}."
        )
    if not bool(torch.isfinite(outputs).all()):
        raise NonFiniteError("outputs", torch.nonzero(~torch.isfinite(outputs).all(1)).flatten().tolist())
    return outputs


def last_linear_layer(module: nn.Module, inputs: Any, measure: str) -> nn.Linear:
    """The ``nn.Linear`` whose output the module returns; found in a forward pass.

    Raises:
        UndefinedMeasureError: If there is none, of the ``measure`` that needs it.
    """
    made: list[tuple[nn.Linear, Any]] = []
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(lambda layer, _, output: made.append((layer, output))) for layer in linear]
    try:
        with torch.enable_grad():  # without, what comes is a copy
            outputs = evaluate(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for layer, output in made:
        if output is outputs:
            return layer
    raise UndefinedMeasureError(measure, "one whose output is not that of an nn.Linear layer")

"""Differentiate a module in evaluation mode without leaving a trace in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_fisher.functional.evaluation.module_state import (
    evaluation_mode,
    preserved_buffers,
    preserved_random_state,
    standardizes_one,
)
from lightning_fisher.functional.evaluation.precision import SAME, device_types, full_precision
from lightning_fisher.functional.evaluation.samples import call_module, ordinary, take


@contextmanager
def differentiable_evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on, full precision; mode, buffers and random state as found on the way out.

    Also inside ``torch.no_grad`` and ``torch.inference_mode``. Compiled modules run eagerly and attention on the
    one kernel that can be differentiated twice.
    """
    devices = {tensor.device for tensor in [*module.parameters(), *module.buffers()]}
    with (
        evaluation_mode(module),
        preserved_buffers(module),
        preserved_random_state(devices),
        full_precision(device_types(module)),
        sdpa_kernel(SDPBackend.MATH),
        torch.compiler.set_stance("force_eager"),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def differentiable(tree: Any, module: nn.Module) -> Any:
    """Detached tensors that autograd may save, floating ones in the precision of the module's parameters."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    dtype = torch.float64 if dtypes == {torch.float64} else torch.float32
    return ordinary(tree, dtype if dtypes else None)


def evaluate(module: nn.Module, inputs: Any) -> Any:
    """``module(inputs)``, twice differentiable; samples may not interact.

    Raises:
        ValueError: If a batch-norm uses the statistics of the batch in spite of evaluation mode.
    """
    with _Differentiable():
        return call_module(module, inputs)


def refuse_interaction(module: nn.Module, inputs: Any, outputs: Tensor) -> None:
    """Compare the output of the first sample alone with its output in the batch; costs one sample's forward pass.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    with torch.no_grad():
        alone, batch = evaluate(module, take(inputs, slice(0, 1))), outputs[:1]
    difference = (alone - batch).abs().max() if alone.shape == batch.shape else math.inf
    if not difference <= SAME.get(outputs.dtype, SAME[torch.float32]) * outputs.abs().max():
        raise ValueError(
            "Expected samples that don't interact, but the module's output for a sample depends on the other "
            "samples in the batch."
        )


class _Differentiable(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        batch_statistics = func is F.batch_norm and kwargs.get("training", args[5] if len(args) > 5 else False)
        if batch_statistics and not standardizes_one(*args, **kwargs):
            raise ValueError(
                "Expected batch-norm layers to use running statistics, but got one that uses the statistics of "
                "the batch (track_running_stats=False, or training mode forced), where samples interact."
            )
        if func is torch._weight_norm:  # torch's own fails its check of second derivatives (2.14)
            return _weight_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))

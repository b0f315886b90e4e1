"""Differentiate a module in evaluation mode without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lightning_fisher.functional.evaluation.precision import device_types, full_precision
from lightning_fisher.functional.evaluation.recurrence import differentiable_recurrence
from lightning_fisher.functional.evaluation.samples import call_module, ordinary, refuse_closed
from lightning_fisher.functional.evaluation.state.buffers import preserved_buffers
from lightning_fisher.functional.evaluation.state.layers import standardizes_one
from lightning_fisher.functional.evaluation.state.modes import evaluation_mode
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state

FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


@contextmanager
def differentiable_evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on, full precision; mode, buffers and random state unchanged on the way out.

    Also inside ``torch.no_grad`` and ``torch.inference_mode``. Compiled modules run eagerly and attention on the
    one kernel that can be differentiated twice.
    """
    devices = {tensor.device for tensor in [*module.parameters(), *module.buffers()]}
    with (
        evaluation_mode(module),
        preserved_buffers(module),
        preserved_random_state(devices),
        full_precision(device_types(module)),
        differentiable_recurrence(module),
        sdpa_kernel(SDPBackend.MATH),
        torch.compiler.set_stance("force_eager"),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def differentiable(tree: Any, module: nn.Module) -> Any:
    """Copies that autograd may save, floating ones in the precision of the module's parameters: of a converted copy."""
    refuse_closed(tree, "inputs` or `targets")
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    dtype = torch.float64 if dtypes == {torch.float64} else torch.float32
    return ordinary(tree, dtype if dtypes else None)


def evaluate(module: nn.Module, inputs: Any) -> Any:
    """``module(inputs)``, twice differentiable; samples may not interact.

    Under `torch.no_grad` the outputs are the same without their graph: a module may differentiate in its forward pass.

    Raises:
        ValueError: If a batch-norm uses the statistics of the batch in spite of evaluation mode.
    """
    # Under any function mode torch's attention leaves its fused kernels, which treat padding differently: another
    # module would be differentiated. Samples that interact are then found by comparing outputs only.
    fused = any(isinstance(submodule, FUSED) for submodule in module.modules())
    wanted = torch.is_grad_enabled()
    with nullcontext() if fused else _Differentiable(), torch.enable_grad():
        outputs = call_module(module, inputs)
    return outputs if wanted else tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)


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

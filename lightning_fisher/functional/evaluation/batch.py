"""A batch as a module takes it: copies where the parameters are, in dtypes that the module can do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_fisher.functional.evaluation.samples import (
    call_module,
    device_of,
    num_samples,
    ordinary,
    refuse_closed,
    take,
)
from lightning_fisher.functional.evaluation.state.buffers import preserved_buffers
from lightning_fisher.functional.evaluation.state.modes import evaluation_mode
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state


def own_batch(module: nn.Module, inputs: Any, targets: Any = None) -> tuple[Any, Any]:
    """Copies of a batch, on the device of the parameters, that nothing else shares.

    Tensors keep their dtypes. Where the module refuses these (float32 samples of a data set and weights in float64,
    say), floating-point tensors are converted to the precision of its parameters; it is asked only where these differ,
    by a pass of a sample or two.

    Args:
        module: The module.
        inputs: N samples.
        targets: Theirs.

    Raises:
        ValueError: If samples can't be taken, see `refuse_closed`.
    """
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    device = device_of(parameters)
    refuse_closed(inputs, "inputs")
    refuse_closed(targets, "targets")
    inputs, targets = ordinary(inputs, device=device), ordinary(targets, device=device)
    found = {leaf.dtype for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    dtypes = {parameter.dtype for parameter in parameters}
    if not dtypes or not found - dtypes or _runs(module, inputs):
        return inputs, targets
    dtype = torch.float64 if dtypes == {torch.float64} else torch.float32
    return ordinary(inputs, dtype), ordinary(targets, dtype)


def _runs(module: nn.Module, inputs: Any) -> bool:
    """Whether the module takes the inputs: torch's functions complain about dtypes in words."""
    devices = {parameter.device for parameter in module.parameters()}
    few = take(inputs, slice(0, min(2, num_samples(inputs))))
    with torch.enable_grad(), evaluation_mode(module), preserved_buffers(module), preserved_random_state(devices):
        try:  # with gradients: a module may differentiate in its forward pass
            call_module(module, few)
        except (RuntimeError, TypeError) as error:
            return not any(word in str(error) for word in ("dtype", "scalar type", "Input type", "data type"))
    return True

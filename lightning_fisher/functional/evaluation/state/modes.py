"""Training mode and ``requires_grad`` for the length of a pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_fisher.functional.evaluation.state.layers import submodules


@contextmanager
def evaluation_mode(module: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Put the whole module in evaluation mode and give every submodule its own flag back.

    Args:
        module: Any module.
        batch_statistics: Keep batch-norm layers in training mode, so that they use the statistics of the batch.
    """
    flags = [(submodule, submodule.training) for submodule in submodules(module)]
    try:
        # The flag is set directly: `train()` is often overridden with side effects.
        for submodule, _ in flags:
            submodule.training = batch_statistics and isinstance(submodule, _BatchNorm)
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


@contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Switch ``requires_grad`` off, so that a backward pass skips the gradients of the weights."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)

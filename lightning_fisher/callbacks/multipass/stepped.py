"""The parameters that the optimizers step: what is perturbed, and what the penalty's gradient is added to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn


def stepped_parameters(
    trainer: Trainer, module: LightningModule, optimizers: Iterable[torch.optim.Optimizer] | None = None
) -> list[nn.Parameter]:
    """Those that require gradients, in the module's order, then those that only an optimizer holds.

    Args:
        trainer: Whose optimizers they are.
        module: The module.
        optimizers: Some of the optimizers; ``None``: all.
    """
    chosen = trainer.optimizers if optimizers is None else optimizers
    held = {id(p): p for optimizer in chosen for group in optimizer.param_groups for p in group["params"]}
    own = [held.pop(id(p)) for p in module.parameters() if id(p) in held]
    return [p for p in [*own, *held.values()] if p.requires_grad]

"""Ghost batch-norm in place of the network's batch-norm, with the learning rate that goes with a large batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_fisher.arguments import require_integer
from lightning_fisher.layers import GhostBatchNorm, convert_ghost_batch_norm
from lightning_fisher.module import ImageClassifier


class UseGhostBatchNorm(Callback):
    """Convert the batch-norm layers by `convert_ghost_batch_norm` (Hoffer, Hubara & Soudry 2017).

    Args:
        size: Samples that are normalized together.
        update: ``"sequential"`` or ``"averaged"``, see `GhostBatchNorm`.
        base_batch_size: B₀: the learning rate is that of the recipe times ``√(B/B₀)``, B the samples of a step (Hoffer
            et al., Sec. 4); ``None``: as it is.

    Raises:
        ValueError: If an argument doesn't fit, or the network has no batch-norm.
    """

    def __init__(self, size: int = 32, update: str = "sequential", base_batch_size: int | None = None) -> None:
        require_integer("size", size, least=2)
        require_integer("base_batch_size", base_batch_size, least=1, or_none=True)
        self.size, self.update, self.base_batch_size = size, update, base_batch_size
        self._scaled = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exchange the layers, once, and the learning rate."""
        assert isinstance(pl_module, ImageClassifier)
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in pl_module.net.modules()):
            raise ValueError("Expected a network with batch-norm for reg=ghost_batch_norm, but got one without.")
        if not any(isinstance(m, GhostBatchNorm) for m in pl_module.net.modules()):
            pl_module.net = convert_ghost_batch_norm(pl_module.net, self.size, update=self.update)  # type: ignore[arg-type]
        data = getattr(trainer, "datamodule", None)
        if self.base_batch_size is not None and data is not None and not self._scaled:
            batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
            pl_module.make_optimizer = scaled(pl_module.make_optimizer, math.sqrt(batch / self.base_batch_size))
            self._scaled = True


def scaled(make: Callable[[Any], Any], factor: float) -> Callable[[Any], Any]:
    """A factory of optimizers with ``factor`` times the learning rate."""

    def made(parameters: Any) -> Any:
        optimizer = make(parameters)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        return optimizer

    return made

"""Methods that are an optimizer of their own, in place of the recipe's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_fisher.module import ImageClassifier
from lightning_fisher.optimizers import EntropySGD, PathSGD


class UseOptimizer(Callback):
    """Replaces the optimizer of the recipe; its learning-rate schedule stays."""

    def make(self, module: ImageClassifier) -> Any:
        """A function of the parameters."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exchange the optimizer; its own refusals come now.

        Raises:
            ValueError: If an option or the network doesn't fit.
        """
        assert isinstance(pl_module, ImageClassifier)
        if not pl_module.automatic_optimization:
            raise ValueError("Expected automatic optimization where the method is an optimizer itself, but got manual.")
        pl_module.make_optimizer = self.make(pl_module)
        pl_module.make_optimizer([p for p in pl_module.net.parameters() if p.requires_grad])


class UseEntropySGD(UseOptimizer):
    """Train by `EntropySGD` (Chaudhari et al. 2017), whose closure evaluates the same batch ``inner_steps + 1`` times.

    Args:
        lr: Learning rate of the outer step.
        **options: The other arguments of `EntropySGD`.
    """

    def __init__(self, lr: float = 0.1, **options: Any) -> None:
        self.options = {"lr": lr, **options}

    def make(self, module: ImageClassifier) -> Any:
        """See above."""
        return functools.partial(EntropySGD, **self.options)


class UsePathSGD(UseOptimizer):
    """Train by `PathSGD` (Neyshabur et al. 2015), on ReLU networks without normalization.

    Args:
        lr: Learning rate.
        momentum: From 0 to 1.
        input_shape: Of an image, ``[C, H, W]``.
    """

    def __init__(self, lr: float = 0.01, momentum: float = 0.0, input_shape: Sequence[int] | None = None) -> None:
        self.options: dict[str, Any] = {"lr": lr, "momentum": momentum, "input_shape": input_shape}

    def make(self, module: ImageClassifier) -> Any:
        """See above."""
        return functools.partial(PathSGD, model=module.net, **self.options)

"""The networks of the experiments: plain `nn.Module`s, each a function of its family's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.models.convolutional import cnn
    from lightning_fisher.models.densenet import densenet_bc
    from lightning_fisher.models.perceptron import mlp
    from lightning_fisher.models.residual import resnet
    from lightning_fisher.models.wide_residual import wide_resnet, wide_resnet_imagenet

__all__ = ["cnn", "densenet_bc", "mlp", "resnet", "wide_resnet", "wide_resnet_imagenet"]

__getattr__, __dir__ = lazy_exports(__name__)

"""Fisher-information local-minima metric and regularizer for PyTorch Lightning.

The public names:

* callbacks: `FisherRegularizer` trains with the regularizer, `FisherMonitor` measures during training; other methods
  with extra passes are `SharpnessAware`, `GradientNormPenalty`, `FisherPenalty`, and your own `MultiPassCallback`;
  `JacobianPenalty` is a term of the loss;
* metrics: `FisherMetric` and the metrics it is compared with, in torchmetrics style (`lightning_fisher.metrics`);
* functions: everything as pure functions of a module and a batch (`lightning_fisher.functional`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.callbacks import (
        FisherMonitor,
        FisherPenalty,
        FisherRegularizer,
        GradientNormPenalty,
        JacobianPenalty,
        MultiPassCallback,
        SharpnessAware,
    )
    from lightning_fisher.metrics import FisherMetric

__version__ = "0.1.0"
__all__ = [
    "FisherMetric",
    "FisherMonitor",
    "FisherPenalty",
    "FisherRegularizer",
    "GradientNormPenalty",
    "JacobianPenalty",
    "MultiPassCallback",
    "SharpnessAware",
]

__getattr__, __dir__ = lazy_exports(__name__)

"""J where batch-norm uses the statistics of consecutive chunks: the authors' coupled form."""

from __future__ import annotations

import torch
from torch import nn

from tests.reference.jacobian import flat_gradient, trainable
from tests.reference.losses import differentiable
from tests.reference.samples import call, double_copy, take, to_double

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def coupled_jacobian(module, inputs, targets, *, chunk_size=10, loss_fn=None, logit_norm=None):
    """``J [N, W]`` in float64, the loss of sample j differentiated through the statistics of its chunk.

    Batch-norm is in training mode, everything else in evaluation mode; a last chunk may be smaller.
    """
    module = double_copy(module).eval()
    for submodule in module.modules():
        if isinstance(submodule, BATCH_NORMS):
            submodule.train()
    inputs, targets = to_double(inputs), to_double(targets)
    parameters = trainable(module)
    rows = []
    for start in range(0, len(targets), chunk_size):
        chunk = slice(start, start + chunk_size)
        outputs, labels = call(module, take(inputs, chunk)), take(targets, chunk)
        for j in range(len(labels)):
            scalar = differentiable(outputs[j : j + 1], labels[j : j + 1], loss_fn, logit_norm)
            rows.append(flat_gradient(scalar, parameters, retain_graph=True))
    return torch.stack(rows)

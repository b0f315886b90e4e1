"""The whole Hessian of the mean loss, one row at a time."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.reference.jacobian import trainable
from tests.reference.losses import batch_loss
from tests.reference.samples import call, double_copy, to_double


def dense_hessian(module, inputs, targets, *, loss_fn=None):
    """``H [W, W]`` in float64, evaluation mode: row i is the gradient of entry i of the gradient."""
    module = double_copy(module).eval()
    _without_fused_weight_norm(module)
    parameters = trainable(module)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        loss = batch_loss(call(module, to_double(inputs)), to_double(targets), loss_fn)
    gradient = _flat(torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True), parameters)
    rows = []
    for entry in gradient:
        if not entry.requires_grad:
            rows.append(torch.zeros(len(gradient), dtype=torch.float64))
            continue
        rows.append(_flat(torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True), parameters))
    return torch.stack(rows).detach()


def _without_fused_weight_norm(module):
    """Weight norm from its definition: the second derivative of torch's own kernel is wrong (2.14)."""
    for submodule in module.modules():
        if type(submodule).__name__ == "_WeightNorm":
            submodule.forward = lambda g, v, dim=submodule.dim: (
                g * v / v.pow(2).sum([d for d in range(v.ndim) if d != dim], keepdim=True).sqrt()
            )


def _flat(gradients, parameters):
    pieces = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
    return torch.cat([piece.reshape(-1) for piece in pieces])

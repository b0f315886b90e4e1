"""The Hessian-vector product the finite difference tends to on smooth networks."""

from __future__ import annotations

import torch

from tests.reference.losses import batch_loss
from tests.reference.penalty import split_sizes
from tests.reference.samples import call, double_copy, take, to_double


def hessian_penalty_gradient(module, inputs, targets, *, alpha, num_sub_batches):
    """``alpha sum_i n_i/N H_i g_i`` in float64, ``H_i`` the Hessian of the loss of sub-batch i."""
    module, inputs, targets = double_copy(module), to_double(inputs), to_double(targets)
    parameters = list(module.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    start = 0
    for size in split_sizes(len(targets), num_sub_batches):
        part = slice(start, start + size)
        loss = batch_loss(call(module, take(inputs, part)), take(targets, part))
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        product = torch.autograd.grad(grads, parameters, [g.detach() for g in grads])
        for sum_, term in zip(total, product, strict=True):
            sum_ += alpha * size / len(targets) * term
        start += size
    return total

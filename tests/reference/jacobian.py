"""Per-sample gradients by single-sample backward passes: the matrix J and the Gram matrix J J^T."""

from __future__ import annotations

import torch

from tests.reference.losses import differentiable
from tests.reference.samples import call, double_copy, take, to_double


def trainable(module):
    """The parameters that require gradients, each once, in the order of ``module.parameters()``."""
    return [p for p in module.parameters() if p.requires_grad]


def flat_gradient(loss, parameters, retain_graph=False):
    """Gradient of a scalar as one float64 vector ``[W]``; zeros where a parameter is not used."""
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=retain_graph)
    rows = []
    for parameter, grad in zip(parameters, grads, strict=True):
        grad = torch.zeros_like(parameter) if grad is None else grad
        rows.append((grad.to_dense() if grad.is_sparse else grad).reshape(-1).double())
    return torch.cat(rows)


def jacobian(module, inputs, targets, *, loss_fn=None, logit_norm=None):
    """``J [N, W]`` in float64, row j the gradient of sample j's loss, seen alone, in evaluation mode."""
    module = double_copy(module).eval()
    inputs, targets = to_double(inputs), to_double(targets)
    parameters = trainable(module)
    rows = []
    for j in range(len(targets)):
        one = slice(j, j + 1)
        scalar = differentiable(call(module, take(inputs, one)), take(targets, one), loss_fn, logit_norm)
        rows.append(flat_gradient(scalar, parameters))
    return torch.stack(rows)


def gram(jacobian_matrix):
    """``J J^T``, one inner product at a time."""
    n = len(jacobian_matrix)
    result = torch.empty(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            result[i, j] = torch.dot(jacobian_matrix[i], jacobian_matrix[j])
    return result


def plain_jacobian(module, inputs, targets, *, loss_fn=None):
    """`jacobian` of a float64 module itself, whose hooks and references a copy would lose; leaves no ``.grad``."""
    parameters, rows = trainable(module), []
    for j in range(len(targets)):
        one = slice(j, j + 1)
        differentiable(call(module, take(inputs, one)), take(targets, one), loss_fn, None).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        rows.append(torch.cat([grad.reshape(-1) for grad in grads]))
        module.zero_grad()
    return torch.stack(rows)

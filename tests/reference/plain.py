"""Plain loops over a module and a loss as they are given: nothing copied, cast or taken apart.

What a user would write: a sample alone is ``loss(module(inputs[j:j+1]), targets[j:j+1])``.
"""

from __future__ import annotations

import copy

import torch


def call(module, inputs):
    if isinstance(inputs, (tuple, list)):
        return module(*inputs)
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def rows(tree, index):
    """Fresh copies of some samples of a tensor, or of a tuple, list or dict of tensors."""
    if isinstance(tree, torch.Tensor):
        return tree[index].clone()
    if isinstance(tree, dict):
        return {key: rows(value, index) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(rows(value, index) for value in tree)
    return tree


def gradient_rows(module, inputs, targets, count, loss):
    """``J [N, W]`` over the parameters that require gradients, in float64 if the module is."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = []
    for j in range(count):
        one = slice(j, j + 1)
        value = loss(call(module, rows(inputs, one)), rows(targets, one)).sum()
        found.append(flat(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)))
    return torch.stack(found).double()


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def gram(module, inputs, targets, count, loss):
    matrix = gradient_rows(module, inputs, targets, count, loss)
    return matrix @ matrix.T


def value_and_gradient(module, inputs, targets, loss):
    parameters = [p for p in module.parameters() if p.requires_grad]
    value = loss(call(module, inputs), targets)
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    return value.item(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def penalty(module, inputs, targets, parts, weights, alpha, loss):
    """``R_α`` and its gradient: ``Σ w_i [L(B_i, w) − L(B_i, w − α g_i)]``, the parts given by their indices."""
    total, value = None, 0.0
    for index, weight in zip(parts, weights, strict=True):
        here, gradient = value_and_gradient(module, rows(inputs, index), rows(targets, index), loss)
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for p, g in zip((p for p in moved.parameters() if p.requires_grad), gradient, strict=True):
                p.sub_(alpha * g)
        there, gradient_there = value_and_gradient(moved, rows(inputs, index), rows(targets, index), loss)
        value += weight * (here - there)
        change = [weight * (g - h) for g, h in zip(gradient, gradient_there, strict=True)]
        total = change if total is None else [a + b for a, b in zip(total, change, strict=True)]
    return value, total


def hessian(module, inputs, targets, loss):
    """Dense Hessian of the loss of the whole batch, column by column."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    value = loss(call(module, rows(inputs, slice(None))), rows(targets, slice(None)))
    grads = torch.autograd.grad(value, parameters, create_graph=True)
    columns = []
    for entry in flat(grads):
        again = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        columns.append(flat(again))
    return torch.stack(columns)


def penalty_at(module, inputs, targets, parts, weights, alpha, loss):
    """As `penalty`, for losses that use the module themselves: its own weights are moved and put back."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total, value = None, 0.0
    for index, weight in zip(parts, weights, strict=True):
        before = [p.detach().clone() for p in parameters]
        here, gradient = value_and_gradient(module, rows(inputs, index), rows(targets, index), loss)
        with torch.no_grad():
            for p, g in zip(parameters, gradient, strict=True):
                p.sub_(alpha * g)
        there, gradient_there = value_and_gradient(module, rows(inputs, index), rows(targets, index), loss)
        with torch.no_grad():
            for p, w in zip(parameters, before, strict=True):
                p.copy_(w)
        value += weight * (here - there)
        change = [weight * (g - h) for g, h in zip(gradient, gradient_there, strict=True)]
        total = change if total is None else [a + b for a, b in zip(total, change, strict=True)]
    return value, total

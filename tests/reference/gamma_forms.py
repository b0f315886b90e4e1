"""The forms of γ̂ from J, row by row and weight by weight: at equal outputs, and with the weights' sizes."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_flatten, tree_map

from tests.reference.jacobian import flat_gradient, trainable
from tests.reference.losses import normalize_logits
from tests.reference.output_gradient import output_gradient
from tests.reference.samples import call, double_copy, take, to_double


def rows_at_equal_outputs(module, inputs, targets, *, loss_fn=None, logit_norm=None):
    """``(J [N, W], residuals [N])``: row j the gradient of ``<u_j, q_j(w)>``, u_j constant, residuals ``||dl/dq||``."""
    module = double_copy(module).eval()
    inputs, targets = to_double(inputs), to_double(targets)
    rows, residuals = [], []
    for j in range(len(targets)):
        one = slice(j, j + 1)
        outputs = call(module, take(inputs, one))
        if logit_norm is not None:
            outputs = normalize_logits(outputs, logit_norm)
        gradients = _loss_gradients(outputs, take(targets, one), loss_fn)
        norm = torch.cat([gradient.reshape(-1) for gradient in gradients]).norm()
        leaves = [leaf for leaf in tree_flatten(outputs)[0] if _floating(leaf)]
        scalar = sum((leaf * gradient / norm).sum() for leaf, gradient in zip(leaves, gradients, strict=True))
        rows.append(flat_gradient(scalar, trainable(module)))
        residuals.append(norm)
    return torch.stack(rows), torch.stack(residuals)


def _floating(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _loss_gradients(outputs, target, loss_fn):
    if loss_fn is None:
        return [output_gradient(outputs, target)]
    seen = tree_map(lambda leaf: leaf.detach().clone().requires_grad_() if _floating(leaf) else leaf, outputs)
    leaves = [leaf for leaf in tree_flatten(seen)[0] if _floating(leaf)]
    return torch.autograd.grad(loss_fn(seen, target).sum(), leaves, materialize_grads=True, allow_unused=True)


def weight_sizes(module, scale):
    """``[W]``: by what the column of every weight is multiplied, one weight at a time."""
    sizes = []
    for parameter in trainable(module):
        values = parameter.detach().double()
        flat = values.reshape(-1).tolist()
        for position, value in enumerate(flat):
            if scale == "none":
                size = 1.0
            elif scale == "layer":
                size = sum(other * other for other in flat) ** 0.5
            elif scale == "element" or values.ndim < 2:
                size = abs(value)
            else:
                unit = position // (len(flat) // values.shape[0])
                mates = values[unit].reshape(-1).tolist()
                size = sum(other * other for other in mates) ** 0.5
            sizes.append(size)
    return torch.tensor(sizes, dtype=torch.float64)


def columns_of_layers(module):
    """Name of a layer -> the columns of J that belong to it."""
    columns, start = {}, 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            layer = name.rpartition(".")[0] or name
            columns.setdefault(layer, []).extend(range(start, start + parameter.numel()))
            start += parameter.numel()
    return columns

"""Measures of generalization written out by hand for `NetworkC`, and naive ones for any network; float64."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F


def affine(norm):
    """Batch-norm with running statistics as a factor and an addend."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()


def matrices_c(net):
    """The weight matrices as numpy arrays; ``bn1`` and ``bn3`` are diagonal, ``bn2`` is in ``conv1``."""
    (s1, _), (s2, _), (s3, _) = affine(net.bn1), affine(net.bn2), affine(net.bn3)
    folded = net.conv1.weight * s2.view(-1, 1, 1, 1)
    tensors = [
        net.conv0.weight.reshape(3, -1),
        torch.diag(s1),
        folded.reshape(3, -1),
        net.conv2.weight.reshape(3, -1),
        torch.diag(s3),
        net.fc1.weight,
        net.fc.weight,
    ]
    return [tensor.detach().numpy() for tensor in tensors]


@torch.no_grad()
def path_norm_c(net):
    """The forward pass with everything squared."""
    (s1, t1), (s2, t2), (s3, t3) = affine(net.bn1), affine(net.bn2), affine(net.bn3)
    kernel, bias = net.conv1.weight * s2.view(-1, 1, 1, 1), net.conv1.bias * s2 + t2

    def spread(vector):
        return vector.square().view(1, -1, 1, 1)

    x = F.conv2d(torch.ones(1, 1, 6, 6, dtype=torch.float64), net.conv0.weight**2, padding=1)
    h = F.conv2d(x * spread(s1) + spread(t1), kernel**2, bias**2, padding=1)
    x = x + F.conv2d(h, net.conv2.weight**2, padding=1)
    x = F.max_pool2d(x * spread(s3) + spread(t3), 2).flatten(1)
    x = x @ (net.fc1.weight**2).T + net.fc1.bias**2
    return float((x @ (net.fc.weight**2).T + net.fc.bias**2).sum())


def input_margins(net, inputs, targets):
    """Sample by sample: the margin to the likeliest other class over the norm of its gradient."""
    result = []
    for x, y in zip(inputs, targets, strict=True):
        x = x.unsqueeze(0).requires_grad_()
        logits = net(x)[0]
        other = max((k for k in range(len(logits)) if k != y), key=lambda k: float(logits[k].detach()))
        margin = logits[y] - logits[other]
        (gradient,) = torch.autograd.grad(margin, x)
        result.append(float(margin.detach()) / float(gradient.norm()))
    return np.array(result)


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def loss_at(net, inputs, targets, weights, normalize_logits=False):
    """The mean cross-entropy with a vector of weights in place of the parameters."""
    names, sizes = zip(*((n, p.shape) for n, p in net.named_parameters()), strict=True)
    pieces = torch.split(weights, [int(np.prod(size)) for size in sizes])
    replaced = {n: piece.view(size) for n, piece, size in zip(names, pieces, sizes, strict=True)}
    logits = torch.func.functional_call(net, replaced, inputs)
    if normalize_logits:
        logits = logits - logits.mean(1, keepdim=True)
        logits = logits / logits.norm(dim=1, keepdim=True)
    return -torch.log_softmax(logits, 1)[torch.arange(len(targets)), targets].mean()


def relative_flatness(net, layer, features, targets):
    """``Σ_{s,s'} ⟨w_s, w_s'⟩ tr H_{s,s'}`` from the Hessian of the last layer's weight."""
    weight, bias = layer.weight.detach(), layer.bias.detach()

    def loss(w):
        return F.cross_entropy(features @ w.T + bias, targets)

    hessian = torch.autograd.functional.hessian(loss, weight)  # [s, i, t, i']
    return float(torch.einsum("si,ti,sjtj->", weight, weight, hessian))


def gauss_newton_trace(net, inputs):
    """``1/N Σ_j tr(J_jᵀ (diag(p) − p pᵀ) J_j)`` with every Jacobian formed."""
    total = 0.0
    for x in inputs:
        logits = net(x.unsqueeze(0))[0]
        rows = []
        for k in range(len(logits)):
            grads = torch.autograd.grad(logits[k], list(net.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
        jacobian, p = torch.stack(rows), torch.softmax(logits.detach(), 0)
        total += float(torch.trace((torch.diag(p) - torch.outer(p, p)) @ jacobian @ jacobian.T))
    return total / len(inputs)

"""A plain training loop for any method: float64, its gradient on copies of the network, no code of the package."""

from __future__ import annotations

import copy
import math

import torch
from torch.nn.functional import cross_entropy

from tests.reference.penalty import loss_and_gradient
from tests.reference.perturbed import difference, gradient_norm, sharpness_aware


def train(net, batches, gradient, *, epochs=1, lr=0.1, momentum=0.9, weight_decay=0.0, accumulate=1, clip_norm=None):
    """Train ``net``, changed in place, by ``gradient(net, x, y) → gradients``; its tensors after every batch."""
    net = net.double().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    states = []
    for _ in range(epochs):
        for index, (x, y) in enumerate(batches):
            found = gradient(copy.deepcopy(net), x.double(), y)
            with torch.no_grad():
                net(x.double())  # moves the buffers
            for parameter, part in zip(net.parameters(), found, strict=True):
                parameter.grad = part / accumulate if parameter.grad is None else parameter.grad + part / accumulate
            if (index + 1) % accumulate == 0 or index + 1 == len(batches):
                if clip_norm is not None:
                    norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in net.parameters()))
                    for parameter in net.parameters():
                        parameter.grad *= min(1.0, clip_norm / (norm + 1e-6))
                optimizer.step()
                optimizer.zero_grad()
            states.append({n: t.detach().clone() for n, t in (*net.named_parameters(), *net.named_buffers())})
    return states


def with_difference(beta, **options):
    """``∇L + β ∇R_α``."""

    def gradient(net, x, y):
        plain = loss_and_gradient(net, x, y)[1]
        return [g + beta * r for g, r in zip(plain, difference(net, x, y, **options)[1], strict=True)]

    return gradient


def with_sharpness(**options):
    return lambda net, x, y: sharpness_aware(net, x, y, **options)[2]


def with_gradient_norm(**options):
    return lambda net, x, y: gradient_norm(net, x, y, **options)[2]


def other_labels(logits, generator=None):
    """What stands in for drawn labels: the class after the likeliest one."""
    return (logits.detach().argmax(1) + 1) % logits.shape[1]


def with_fisher_penalty(weight, step):
    """``∇L + c ∇‖G‖²``, the latter by a central difference along G."""

    def gradient(net, x, y):
        plain = loss_and_gradient(net, x, y)[1]
        labels = other_labels(net(x))
        g = loss_and_gradient(net, x, labels)[1]
        length = math.sqrt(sum(part.pow(2).sum().item() for part in g))
        ends = []
        for sign in (0.5, -0.5):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                for parameter, part in zip(moved.parameters(), g, strict=True):
                    parameter += sign * step * part / length
            ends.append(loss_and_gradient(moved, x, labels)[1])
        return [p + weight * 2 * length / step * (a - b) for p, a, b in zip(plain, *ends, strict=True)]

    return gradient


def with_jacobian(weight):
    """``∇(L + λ/(2N) Σ_i ‖J_i‖²)``, sample by sample."""

    def gradient(net, x, y):
        total = cross_entropy(net(x), y)
        for sample in x:
            variable = sample[None].clone().requires_grad_()
            for output in net(variable)[0]:
                (row,) = torch.autograd.grad(output, variable, create_graph=True)
                total = total + weight / (2 * len(x)) * row.square().sum()
        return torch.autograd.grad(total, list(net.parameters()))

    return gradient

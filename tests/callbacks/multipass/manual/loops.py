"""Plain torch loops with the penalty, for steps that are written by hand: no Lightning and no code of the package."""

from __future__ import annotations

import torch

ALPHA, PARTS = 1e-3, 4


def add_penalty(loss_of, parts, parameters, beta, alpha=ALPHA):
    """Add ``β ∇R_α`` to ``.grad``: ``loss_of(part)`` at ``w`` and at ``w − α g_i``; returns R.

    Equal parts. The random state isn't used.
    """
    parameters = list(parameters)
    weights = [p.detach().clone() for p in parameters]
    extra, value = [torch.zeros_like(p) for p in parameters], 0.0

    def gradient(part):
        loss = loss_of(part)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return loss.item(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    for part in parts:
        here, g = gradient(part)
        with torch.no_grad():
            for p, w, direction in zip(parameters, weights, g, strict=True):
                p.copy_(w - alpha * direction)
        there, h = gradient(part)
        with torch.no_grad():
            for p, w in zip(parameters, weights, strict=True):
                p.copy_(w)
        value += (here - there) / len(parts)
        extra = [e + (a - b) / len(parts) for e, a, b in zip(extra, g, h, strict=True)]
    for p, e in zip(parameters, extra, strict=True):
        p.grad = beta * e if p.grad is None else p.grad + beta * e
    return value


def parts_of(batch, count=PARTS):
    return list(zip(*(tensor.chunk(count) for tensor in batch), strict=True))

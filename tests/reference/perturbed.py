"""Methods with gradients at perturbed points, each evaluation on a fresh copy of the module."""

from __future__ import annotations

import torch

from tests.reference.penalty import loss_and_gradient, shifted, split_sizes
from tests.reference.samples import call, double_copy, take, to_double


def sub_batches(inputs, targets, parts):
    start = 0
    for size in split_sizes(len(targets), parts):
        part = slice(start, start + size)
        yield take(inputs, part), take(targets, part), size / len(targets)
        start += size


def squared_length(gradients):
    return sum(float((g * g).sum()) for g in gradients)


def evaluate(module, inputs, targets, loss_fn, random_state):
    torch.set_rng_state(random_state)
    return loss_and_gradient(module, inputs, targets, loss_fn)


def each_part(module, inputs, targets, parts, loss_fn, method):
    """Size-weighted mean over the sub-batches of ``method(module, evaluate) → (loss, penalty, gradients)``."""
    module, inputs, targets = double_copy(module), to_double(inputs), to_double(targets)
    loss = penalty = 0.0
    total = [torch.zeros_like(p) for p in module.parameters()]
    with torch.random.fork_rng(devices=[]):
        for x, y, share in sub_batches(inputs, targets, parts):
            masks = torch.get_rng_state()
            found = method(module, lambda net, x=x, y=y, masks=masks: evaluate(net, x, y, loss_fn, masks))
            loss, penalty = loss + share * found[0], penalty + share * found[1]
            for sum_, part in zip(total, found[2], strict=True):
                sum_ += share * part
    return loss, penalty, total


def sharpness_aware(module, inputs, targets, *, rho, adaptive=False, eta=0.0, parts=1, loss_fn=None):
    """Loss, sharpness and gradient of SAM, or of ASAM with T = |w| + eta (on "weight"s only, or throughout)."""

    def method(net, evaluate):
        loss, g = evaluate(net)
        t = [torch.ones_like(p) for p in net.parameters()]
        for i, (name, p) in enumerate(net.named_parameters()):
            if adaptive is True or (adaptive == "weights" and "weight" in name):
                t[i] = p.detach().abs() + eta
        length = squared_length([a * b for a, b in zip(t, g, strict=True)]) ** 0.5
        e = [a * a * b / length if length > 0 else 0 * b for a, b in zip(t, g, strict=True)]
        higher, gradient = evaluate(shifted(net, e, -rho))
        return loss, higher - loss, gradient

    return each_part(module, inputs, targets, parts, loss_fn, method)


def gradient_norm(module, inputs, targets, *, radius, coefficient, parts=1, loss_fn=None):
    def method(net, evaluate):
        loss, g = evaluate(net)
        length = squared_length(g) ** 0.5
        higher, there = evaluate(shifted(net, g, -radius / length if length > 0 else 0.0))
        mixed = [(1 - coefficient) * a + coefficient * b for a, b in zip(g, there, strict=True)]
        return loss, coefficient * (higher - loss), mixed

    return each_part(module, inputs, targets, parts, loss_fn, method)


def difference(module, inputs, targets, *, alpha, num_sub_batches, difference, step, loss_fn=None):
    """``R`` and its gradient by a difference between two points on the line along the gradient."""
    ends = {"backward": (0, -1), "forward": (1, 0), "central": (0.5, -0.5)}[difference]

    def method(net, evaluate):
        loss, g = evaluate(net)
        length = squared_length(g) ** 0.5
        along, factor = (alpha, 1.0) if step == "fixed" else (alpha / length if length > 0 else 0.0, length)
        (upper, a), (lower, b) = (evaluate(shifted(net, g, -end * along)) for end in ends)
        return loss, factor * (upper - lower), [factor * (c - d) for c, d in zip(a, b, strict=True)]

    return each_part(module, inputs, targets, num_sub_batches, loss_fn, method)[1:]


def fisher_trace(module, inputs):
    """``Tr F``, mean over the samples of ``Σ_c p_c ‖∇ log p_c‖²``: a backward pass a sample and class."""
    total = 0.0
    count = len(inputs)
    for i in range(count):
        log_p = call(module, inputs[i : i + 1]).log_softmax(1)[0]
        for c in range(len(log_p)):
            gradients = torch.autograd.grad(log_p[c], list(module.parameters()), retain_graph=True)
            total += log_p[c].exp().item() * squared_length(gradients)
    return total / count

"""R_alpha and its gradient by Algorithm 1, with a fresh copy of the module for every evaluation."""

from __future__ import annotations

import copy

import torch

from tests.reference.losses import batch_loss
from tests.reference.samples import call, double_copy, take, to_double


def split_sizes(num_samples, num_parts):
    """Sizes of consecutive parts, the first ``num_samples % num_parts`` of them one larger."""
    small, larger = divmod(num_samples, num_parts)
    return [small + 1] * larger + [small] * (num_parts - larger)


def loss_and_gradient(module, inputs, targets, loss_fn=None):
    """Mean loss and its gradient per parameter (zeros where frozen or unused), on a copy of the module."""
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.grad = None
    loss = batch_loss(call(module, inputs), targets, loss_fn)
    if loss.requires_grad:
        loss.backward()
    grads = []
    for parameter in module.parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grads.append(grad.to_dense() if grad.is_sparse else grad)
    return loss.item(), grads


def shifted(module, grads, alpha):
    """A copy of the module at ``w - alpha g``."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter, grad in zip(module.parameters(), grads, strict=True):
            parameter -= alpha * grad
    return module


def sub_batch_gradients(module, inputs, targets, num_sub_batches, loss_fn=None):
    """The gradients ``g_i`` of the sub-batch losses and the sizes of the sub-batches."""
    sizes = split_sizes(len(targets), num_sub_batches)
    gradients, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        gradients.append(loss_and_gradient(module, take(inputs, part), take(targets, part), loss_fn)[1])
        start += size
    return gradients, sizes


def penalty(module, inputs, targets, *, alpha, num_sub_batches, loss_fn=None, dtype=torch.float64, denominator=None):
    """``R_alpha`` and ``grad R_alpha`` (list over parameters), modules in their current mode.

    ``R = sum_i n_i/N [L(B_i, w) - L(B_i, w - alpha g_i)]``. Both passes of a sub-batch start from the same
    random state (the same dropout masks); the next sub-batch continues from the state after one pass.
    ``denominator(targets)`` is what a mean loss divides by; ``None``: the number of samples. Without any: left out.
    """
    if dtype == torch.float64:
        module, inputs, targets = double_copy(module), to_double(inputs), to_double(targets)
    value = 0.0
    total = [torch.zeros_like(p) for p in module.parameters()]
    start = 0
    with torch.random.fork_rng(devices=[]):
        for size in split_sizes(len(targets), num_sub_batches):
            x, y = take(inputs, slice(start, start + size)), take(targets, slice(start, start + size))
            random_state = torch.get_rng_state()
            loss, grads = loss_and_gradient(module, x, y, loss_fn)
            torch.set_rng_state(random_state)
            loss_after, grads_after = loss_and_gradient(shifted(module, grads, alpha), x, y, loss_fn)
            weight = size / len(targets) if denominator is None else denominator(y) / denominator(targets)
            if weight == 0:
                start += size
                continue
            value += weight * (loss - loss_after)
            for sum_, grad, grad_after in zip(total, grads, grads_after, strict=True):
                sum_ += weight * (grad - grad_after)
            start += size
    return value, total

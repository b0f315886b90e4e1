"""The forms of the regularized step in plain float64 loops: full or shared gradient, k of M, every n-th step.

No Lightning and no code of the package. The passes at ``w - alpha g`` run on copies of the network, so there is nothing
to restore; a training pass runs on the network itself.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from tests.reference.penalty import loss_and_gradient, shifted, split_sizes
from tests.reference.regularized_training import snapshot


def runs_of(sizes, flags, merge):
    """``(start, size, flag)`` of the passes: flagged parts alone, unflagged neighbors together if ``merge``."""
    runs, start = [], 0
    for size, flag in zip(sizes, flags, strict=True):
        if merge and runs and not flag and not runs[-1][2]:
            runs[-1] = (runs[-1][0], runs[-1][1] + size, False)
        else:
            runs.append((start, size, flag))
        start += size
    return runs


def training_pass(net, x, y):
    """Gradients of one pass that moves the network's own buffers."""
    loss = F.cross_entropy(net(x), y)
    return loss.item(), torch.autograd.grad(loss, list(net.parameters()))


def step_gradient(net, x, y, *, beta, alpha, num_sub_batches, gradient, flags, scaling="linear"):
    """``(loss, R, gradient)`` of one batch; ``flags``: which sub-batches are perturbed."""
    if scaling == "sqrt":
        beta = beta * (sum(flags) / num_sub_batches) ** 0.5
    count, scale, untouched = len(y), num_sub_batches / sum(flags), torch.get_rng_state()
    total = [torch.zeros_like(p) for p in net.parameters()]
    loss, penalty = 0.0, 0.0
    for start, size, flag in runs_of(split_sizes(count, num_sub_batches), flags, gradient == "shared"):
        part_x, part_y, share = x[start : start + size], y[start : start + size], size / count
        if gradient == "full" and not flag:
            continue
        before, random_state = copy.deepcopy(net), torch.get_rng_state()
        here, g = training_pass(net if gradient == "shared" else copy.deepcopy(net), part_x, part_y)
        if gradient == "shared":
            loss += share * here
            for sum_, part in zip(total, g, strict=True):
                sum_ += share * part
        after = torch.get_rng_state()
        if flag:
            torch.set_rng_state(random_state)
            there, h = loss_and_gradient(shifted(before, g, alpha), part_x, part_y, F.cross_entropy)
            penalty += scale * share * (here - there)
            for sum_, part, moved in zip(total, g, h, strict=True):
                sum_ += beta * scale * share * (part - moved)
        torch.set_rng_state(after)
    if gradient == "full":
        torch.set_rng_state(untouched)
        loss, plain = training_pass(net, x, y)
        for sum_, part in zip(total, plain, strict=True):
            sum_ += part
    return loss, penalty, total


def train_form(
    net,
    batches,
    *,
    epochs,
    beta,
    optimizer,
    gradient,
    flags,
    every_n=1,
    alpha=1e-4,
    num_sub_batches=4,
    scaling="linear",
):
    """Train ``net`` (float64, changed in place), regularized from the start; a list of states, one a batch.

    Args:
        flags: a function of the number of the batch: which sub-batches are perturbed.
    """
    net = net.double().train()
    opt = optimizer(net.parameters())
    states, number = [], 0
    for _ in range(epochs):
        for x, y in batches:
            if number % every_n == 0:
                _, _, grads = step_gradient(
                    net,
                    x.double(),
                    y,
                    beta=beta * (every_n if scaling == "linear" else every_n**0.5),
                    alpha=alpha,
                    num_sub_batches=num_sub_batches,
                    gradient=gradient,
                    flags=flags(number),
                    scaling=scaling,
                )
            else:
                _, grads = training_pass(net, x.double(), y)
            for parameter, grad in zip(net.parameters(), grads, strict=True):
                parameter.grad = grad.clone()
            opt.step()
            states.append(snapshot(net))
            number += 1
    return states

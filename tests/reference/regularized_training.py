"""A plain training loop with the Fisher regularizer, in float64: no Lightning and no code of the package.

Per batch: ``R`` and its gradient by Algorithm 1 on *copies* of the network (nothing to restore), one ordinary
forward and backward of the network itself (the only one that moves its buffers), ``grad += beta * grad R``;
per optimizer step: clipping, the step, the schedulers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from tests.reference.divergence import norms_and_cosines
from tests.reference.penalty import penalty
from tests.reference.samples import call, to_double


@dataclass
class Trace:
    """What happened, one entry a batch; the penalty and its companions are ``None`` before the switch."""

    lrs: list = field(default_factory=list)
    states: list = field(default_factory=list)
    penalties: list = field(default_factory=list)
    norm_variances: list = field(default_factory=list)
    mean_cosines: list = field(default_factory=list)
    switch_step: int | None = None
    switch_epoch: int | None = None


class FirstDrop:
    """True from the first batch whose LR is <= 0.9 x the previous batch's or <= 0.5 x the highest so far."""

    def __init__(self):
        self.previous = self.peak = 0.0
        self.dropped = False

    def __call__(self, lr):
        if self.previous > 0 and (lr <= 0.9 * self.previous or lr <= 0.5 * self.peak):
            self.dropped = True
        self.previous, self.peak = lr, max(self.peak, lr)
        return self.dropped


def snapshot(module):
    """Copies of all parameters and buffers (non-persistent ones too) by name."""
    return {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def train(
    net,
    batches,
    *,
    epochs,
    beta,
    optimizer,
    scheduler=None,
    interval="epoch",
    plateau_value=None,
    alpha=1e-4,
    num_sub_batches=4,
    start="first_lr_drop",
    accumulate=1,
    clip_norm=None,
    loss_fn=F.cross_entropy,
):
    """Train ``net`` (changed in place, float64) on the same ``batches`` of ``(x, y)`` every epoch.

    Args:
        loss_fn: ``(net(x), y) -> mean loss``; accumulate: batches a step, or a function of the epoch.
        optimizer: a function of the parameters; scheduler: a function of the optimizer.
        interval: ``"epoch"`` or ``"step"``, when the scheduler steps.
        plateau_value: what the scheduler is stepped with, if anything.
        start: ``"first_lr_drop"``, or the epoch from which on the batches are regularized.

    Returns:
        A ``Trace``.
    """
    net = net.double().train()
    opt = optimizer(net.parameters())
    sched = scheduler(opt) if scheduler else None
    step_scheduler = (lambda: sched.step() if plateau_value is None else sched.step(plateau_value)) if sched else None
    trace, first_drop, steps, active = Trace(), FirstDrop(), 0, False
    for epoch in range(epochs):
        per_step = accumulate(epoch) if callable(accumulate) else accumulate
        for index, (x, y) in enumerate(batches):
            x = to_double(x)
            trace.lrs.append(opt.param_groups[0]["lr"])
            drop = first_drop(trace.lrs[-1])
            if not active and (drop if start == "first_lr_drop" else epoch >= start):
                active, trace.switch_step, trace.switch_epoch = True, steps, epoch
            extra = _penalty_gradient(net, x, y, alpha, num_sub_batches, loss_fn, trace) if active else _inactive(trace)
            (loss_fn(call(net, x), y) / per_step).backward()
            for parameter, addend in zip(net.parameters(), extra or [], strict=extra is not None):
                if parameter.grad is not None:
                    parameter.grad += beta * addend / per_step
            if (index + 1) % per_step == 0 or index + 1 == len(batches):
                if clip_norm is not None:
                    clip_by_norm([p.grad for p in net.parameters() if p.grad is not None], clip_norm)
                opt.step()
                opt.zero_grad()
                steps += 1
                if step_scheduler and interval == "step":
                    step_scheduler()
            trace.states.append(snapshot(net))
        if step_scheduler and interval == "epoch":
            step_scheduler()
    return trace


def clip_by_norm(grads, max_norm):
    """Scale all gradients by ``max_norm / (norm + 1e-6)`` (torch's constant) where that is below one."""
    norm = math.sqrt(sum(g.pow(2).sum().item() for g in grads))
    for grad in grads:
        grad *= min(1.0, max_norm / (norm + 1e-6))


def _penalty_gradient(net, x, y, alpha, num_sub_batches, loss_fn, trace):
    value, grads = penalty(net, x, y, alpha=alpha, num_sub_batches=num_sub_batches, loss_fn=loss_fn)
    with torch.random.fork_rng(devices=[]):  # the masks that the penalty saw
        norms, cosines = norms_and_cosines(net, x, y, num_sub_batches, loss_fn)
    mean = sum(norms) / len(norms)
    trace.penalties.append(value)
    trace.norm_variances.append(sum((norm - mean) ** 2 for norm in norms) / len(norms))
    trace.mean_cosines.append(sum(cosines) / len(cosines))
    return grads


def _inactive(trace):
    for values in (trace.penalties, trace.norm_variances, trace.mean_cosines):
        values.append(None)

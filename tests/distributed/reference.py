"""Distributed training without processes: the mean over the ranks' shares, in plain float64 loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fisher.functional.multipass.sub_batches import draw_perturbed
from tests.callbacks.tiny import mlp, multi_step, seeded, sgd
from tests.distributed.fits import BETA, EPOCHS, Fit, M, share
from tests.reference.penalty import penalty, split_sizes
from tests.reference.regularized_training import Trace, clip_by_norm, snapshot
from tests.reference.regularized_training import train as train_on_global_batches


def one_process(fit: Fit) -> Trace:
    """One process on the global batches, all M sub-batches in it."""
    return train_on_global_batches(
        seeded(mlp),
        list(fit.batches),
        epochs=EPOCHS,
        beta=fit.beta or 0.0,
        optimizer=sgd,
        scheduler=multi_step(1),
        num_sub_batches=M,
        accumulate=fit.accumulate,
        clip_norm=fit.clip,
    )


def parts(fit: Fit, world: int, count: int, largest: int) -> int:
    """Sub-batches of a rank: M / world; parts of two where a smaller batch has not two samples for each."""
    wanted = fit.num_sub_batches // world
    return max(1, count // 2) if count < 2 * wanted and count < largest else wanted


def penalty_gradient(fit: Fit, net: nn.Module, x: Tensor, y: Tensor, count: int, flags: list[bool]) -> list[Tensor]:
    """Of one rank: the sum over its perturbed sub-batches, ``M / k`` times as heavy."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    start = 0
    for size, perturbed in zip(split_sizes(len(y), count), flags, strict=True):
        if perturbed:
            part = slice(start, start + size)
            own = penalty(net, x[part], y[part], alpha=1e-4, num_sub_batches=1, loss_fn=F.cross_entropy)[1]
            for sum_, gradient in zip(total, own, strict=True):
                sum_ += size / len(y) * count / sum(flags) * gradient
        start += size
    return total


def mean_of_ranks(fit: Fit, world: int) -> list[dict[str, Tensor]]:
    """Weights after every batch; each share's gradient counts ``1 / world``, whatever its size, as in DDP."""
    beta = BETA if fit.beta is None else fit.beta
    every, perturbed = fit.form.get("every_n_steps", 1), fit.form.get("perturbed")
    net: nn.Module = seeded(fit.net).double().train()
    names = dict(net.named_parameters())
    optimizer = sgd(net.parameters())
    scheduler = multi_step(1)(optimizer)
    states: list[dict[str, Tensor]] = []
    steps, number, first = 0, 0, None
    for epoch in range(EPOCHS):
        for index, batch in enumerate(fit.batches):
            first = steps if epoch == 1 and first is None else first  # the learning rate drops after epoch 0
            regularized = fit.beta is not None and first is not None and (steps - first) % every == 0
            for rank in range(world):
                x, y = share(batch, rank, world)
                (F.cross_entropy(net(x.double()), y) / fit.accumulate / world).backward()
                if regularized:
                    count = parts(fit, world, len(y), len(share(fit.batches[0], rank, world)[1]))
                    # The draw is the package's: any would do, but not another one.
                    draw = torch.Generator().manual_seed(number * world + rank)
                    flags = draw_perturbed(count, None if perturbed is None else perturbed // world, draw)
                    gradients = penalty_gradient(fit, net, x, y, count, flags)
                    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                        assert parameter.grad is not None
                        parameter.grad += every * beta * gradient / fit.accumulate / world
            if (index + 1) % fit.accumulate == 0 or index + 1 == len(fit.batches):
                if fit.clip is not None:
                    clip_by_norm([p.grad for p in net.parameters()], fit.clip)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
            number += 1
            states.append({name: value for name, value in snapshot(net).items() if name in names})
        scheduler.step()
    return states

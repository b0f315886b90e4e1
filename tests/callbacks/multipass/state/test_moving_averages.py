"""Moved averages that the step updates count once a batch, in both forms: against plain float64 PyTorch."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, image_batches, seeded

BATCHES = image_batches([8] * 5)
KEEP, RATE, BETA, ALPHA, M = 0.9, 0.1, 5.0, 1e-4, 4


def net():
    """No layer in which samples interact; a buffer that is averaged or copied with the weights."""
    made = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
    made.register_buffer("shift", torch.linspace(0, 1, 3))
    return made


class Kind(NamedTuple):
    """How a moved average is made, updated in the step and read; what one update does in plain PyTorch."""

    make: Any
    update: Any
    read: Any
    oracle: str = "exponential"


def tensors(source):
    return {name: p.detach().clone() for name, p in source.named_parameters()}


def mixed(old, new):
    return KEEP * old + (1 - KEEP) * new.detach()


def replace_entries(module):
    for name, p in module.net.named_parameters():
        module.it[name] = mixed(module.it[name], p)


def replace_dict(module):
    module.it = {name: mixed(module.it[name], p) for name, p in module.net.named_parameters()}


def replace_list(module):
    module.it = [mixed(old, p) for old, p in zip(module.it, module.net.parameters(), strict=True)]


def replace_items(module):
    for index, p in enumerate(module.net.parameters()):
        module.it[index] = mixed(module.it[index], p)


def lerp_entries(module):
    for name, p in module.net.named_parameters():
        module.it[name].lerp_(p.detach(), 1 - KEEP)


def lerp_items(module):
    for old, p in zip(module.it, module.net.parameters(), strict=True):
        old.lerp_(p.detach(), 1 - KEEP)


def replace_in_object(module):
    module.it.updates += 1
    module.it.shadow = {name: mixed(module.it.shadow[name], p) for name, p in module.net.named_parameters()}


def update_averaged(module):
    module.it.update_parameters(module.net)


class Counting(nn.Module):
    """A moved average of one's own, which counts in a buffer and is corrected for its bias by the count."""

    def __init__(self, source):
        super().__init__()
        self.average = copy.deepcopy(source).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, source):
        self.count = self.count + 1
        keep = min(KEEP, (1 + int(self.count)) / (10 + int(self.count)))
        for old, p in zip(self.average.parameters(), source.parameters(), strict=True):
            old.mul_(keep).add_(p, alpha=1 - keep)


EXPONENTIAL = get_ema_multi_avg_fn(KEEP)
KINDS = {
    "AveragedModel": Kind(lambda n: AveragedModel(n), update_averaged, lambda m: tensors(m.it.module), "mean"),
    "AveragedModel, exponential, buffers": Kind(
        lambda n: AveragedModel(n, multi_avg_fn=EXPONENTIAL, use_buffers=True),
        update_averaged,
        lambda m: tensors(m.it.module),
    ),
    "AveragedModel in a list": Kind(
        lambda n: [AveragedModel(n)],
        lambda m: m.it[0].update_parameters(m.net),
        lambda m: tensors(m.it[0].module),
        "mean",
    ),
    "AveragedModel, begun late": Kind(
        lambda n: AveragedModel(n),
        lambda m: m.it.update_parameters(m.net) if m.global_step > 2 else None,
        lambda m: tensors(m.it.module),
        "mean, begun late",
    ),
    "count in a buffer": Kind(Counting, lambda m: m.it.update(m.net), lambda m: tensors(m.it.average), "corrected"),
    "dict, entries replaced": Kind(tensors, replace_entries, lambda m: m.it),
    "dict, replaced": Kind(tensors, replace_dict, lambda m: m.it),
    "dict, in place": Kind(tensors, lerp_entries, lambda m: m.it),
    "OrderedDict": Kind(lambda n: OrderedDict(tensors(n)), replace_entries, lambda m: m.it),
    "list, replaced": Kind(lambda n: [*tensors(n).values()], replace_list, lambda m: m.it),
    "list, items replaced": Kind(lambda n: [*tensors(n).values()], replace_items, lambda m: m.it),
    "list, in place": Kind(lambda n: [*tensors(n).values()], lerp_items, lambda m: m.it),
    "dict in an object": Kind(
        lambda n: types.SimpleNamespace(shadow=tensors(n), updates=0), replace_in_object, lambda m: m.it.shadow
    ),
}


class Averages(Classifier):
    def __init__(self, kind):
        super().__init__(seeded(net).double())
        self.kind = kind
        self.it = kind.make(self.net)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.kind.update(self)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=RATE)


def averages(rule):
    """The moved average and the weights after every batch's one update, which sees the weights before the step."""
    mine = seeded(net).double()
    average, count = tensors(mine), 0
    for index, (x, y) in enumerate(BATCHES):
        if index > 2 or "late" not in rule:
            count += 1
            keep = {"exponential": KEEP, "corrected": min(KEEP, (1 + count) / (10 + count))}.get(rule, 1 - 1 / count)
            average = {name: keep * average[name] + (1 - keep) * p.detach() for name, p in mine.named_parameters()}
        weights, x = list(mine.parameters()), x.double()
        step = [*torch.autograd.grad(F.cross_entropy(mine(x), y), weights)]
        for part, labels in zip(x.chunk(M), y.chunk(M), strict=True):
            here = torch.autograd.grad(F.cross_entropy(mine(part), labels), weights)
            moved = copy.deepcopy(mine)
            with torch.no_grad():
                for p, g in zip(moved.parameters(), here, strict=True):
                    p -= ALPHA * g
            there = torch.autograd.grad(F.cross_entropy(moved(part), labels), list(moved.parameters()))
            step = [s + BETA / M * (h - t) for s, h, t in zip(step, here, there, strict=True)]
        with torch.no_grad():
            for p, s in zip(weights, step, strict=True):
                p -= RATE * s
    return list(average.values()), [p.detach() for p in mine.parameters()]


@pytest.mark.parametrize("gradient", ["full", "shared"])
@pytest.mark.parametrize("name", KINDS)
def test_once_a_batch(fit, name, gradient):
    kind = KINDS[name]
    module = Averages(kind)
    fit(
        module,
        BATCHES,
        FisherRegularizer(BETA, ALPHA, M, start=0, gradient=gradient),
        precision="64-true",
    )
    read = kind.read(module)
    got = list(read.values() if isinstance(read, dict) else read)
    average, weights = averages(kind.oracle)
    for a, b in zip([*got, *module.net.parameters()], [*average, *weights], strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


class Remembers(Averages):
    """A queue and a memory of samples: what every part adds to them stays."""

    def __init__(self):
        super().__init__(Kind(lambda n: 0, lambda m: None, None))
        self.queue = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(M)]
        self.memory = {index: torch.zeros(3, dtype=torch.float64) for index in range(8)}
        self.register_buffer("keys", torch.zeros(8, 3, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        x, y = batch
        found = self(x).detach()
        if len(y) == 8:
            return F.cross_entropy(self(x), y)
        self.queue = [*self.queue[1:], found]
        self.keys = torch.cat([self.keys[len(y) :], found])
        for sample, output in zip(range(8), found, strict=False):
            self.memory[int(y[0]) * 2 + sample] = output
        return F.cross_entropy(self(x), y)


def test_queues_and_memories_keep_what_every_part_adds(fit):
    module = Remembers()
    regularizer = FisherRegularizer(1e-30, ALPHA, M, start=0, gradient="shared")
    before = module.net(BATCHES[0][0].double()).detach()
    fit(module, BATCHES[:1], regularizer, precision="64-true")
    assert torch.allclose(torch.cat(module.queue), before, atol=1e-14)
    assert torch.allclose(module.keys, before, atol=1e-14)
    labels = {int(y) for y in BATCHES[0][1][::2]}
    assert {key // 2 for key, value in module.memory.items() if value.any()} == labels

"""Steps that change several things at once, drawn at random: put back or refused by name, never silently twice."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_fisher import FisherRegularizer
from lightning_fisher.callbacks.multipass.state.stand_ins import LostStateError
from tests.callbacks.multipass.state.changes import CHANGES, Gathering, prepare_data
from tests.callbacks.multipass.state.test_changes import assert_same
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded

# Those that name the module itself, or change what others look at (the rate of learning, the end of training).
ALONE = {"attribute of the module's class", "generator of the module's class", "own scheduler", "the Trainer's end"}
ALONE |= {"pruning", "parameter groups", "submodule made in the step", "dropout rate", "weights, set anew late"}
KINDS = sorted(set(CHANGES) - ALONE)


class Holder(nn.Module):
    """Where a change happens: a submodule, with the network and the Trainer in reach."""

    def __init__(self, root):
        super().__init__()
        self.reach = lambda: root

    net = property(lambda self: self.reach().net)
    trainer = property(lambda self: self.reach().trainer)
    global_step = property(lambda self: self.reach().global_step)
    hparams = property(lambda self: self.reach().hparams)

    def optimizers(self):
        return self.reach().optimizers()

    def save_hyperparameters(self, values):
        self.reach().save_hyperparameters(values)


class Several(Classifier):
    """Some changes, each at a random place in the step and in some of the batches."""

    def __init__(self, seed, manual):
        super().__init__(seeded(mlp))
        self.automatic_optimization = not manual
        draw = random.Random(seed)
        self.about = [(name, draw.random() < 0.5, draw.choice([1, 1, 2])) for name in draw.sample(KINDS, 3)]
        torch.manual_seed(0)
        self.holders = nn.ModuleList(Holder(self) for _ in self.about)
        self.nested = [{"held": self.holders}]
        for holder, (name, *_) in zip(self.holders, self.about, strict=True):
            holder.it = CHANGES[name].make(holder)

    def change(self, batch, batch_idx, first):
        for holder, (name, at_first, every) in zip(self.holders, self.about, strict=True):
            if at_first is first and batch_idx % every == 0:
                CHANGES[name].change(holder, batch)

    def training_step(self, batch, batch_idx):
        self.change(batch, batch_idx, first=True)
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.change([t.clone() for t in batch], batch_idx, first=False)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self):
        return Gathering(self.net.parameters())

    def on_train_start(self):
        prepare_data(self)

    def read(self):
        found = [(CHANGES[name].read, holder) for holder, (name, *_) in zip(self.holders, self.about, strict=True)]
        return [read(holder) if read is not None else 0 for read, holder in found]


def batches():
    return [(x.clone(), y) for x, y in image_batches([8] * 4)]


@pytest.mark.parametrize("seed", range(50))
def test_random_changes(fit, seed):
    """In either mode of Lightning, before the switch and after it."""
    manual, start = seed % 2 == 1, 99 * (seed // 2 % 2)
    plain = Several(seed, manual)
    expected, wanted = fit(plain, batches()), plain.read()
    module = Several(seed, manual)
    refused = [CHANGES[name].refused for name, *_ in module.about if CHANGES[name].refused]
    line = None
    try:
        got = fit(module, batches(), FisherRegularizer(1e-30, num_sub_batches=4, start=start))
    except LostStateError as error:
        line = str(error)
    if line is not None:
        assert any((name if isinstance(name, str) else "it") in line for name in refused)
        return
    assert not refused or start == 99  # the one batch of the rehearsal may be another than the one that is changed in
    for mine, other in zip(module.read(), wanted, strict=True):
        assert_same(mine, other)
    for a, b in zip(got.states, expected.states, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b), [name for name, *_ in module.about]

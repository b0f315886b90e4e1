"""The networks, modules, data and schedules the callback tests share, all of them tiny."""

from __future__ import annotations

import collections
import functools
import sys

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader


class Tick(nn.Module):
    """Counts training forwards in a *reassigned*, non-persistent buffer; the count scales the output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.count = self.count + 1
        return x * (1 + 0.05 * self.count)


def conv_bn_net():
    """Convolution, batch-norm, a forward counter, a linear head: images ``[N, 1, 6, 6]`` to 3 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        Tick(),
        nn.Linear(16, 3),
    )


def mlp():
    """The smallest net with a curved loss: images ``[N, 1, 6, 6]`` to 3 classes, samples don't interact."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))


def seeded(factory, seed=0):
    """A network with reproducible weights, the global random state left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()


def image_batches(sizes, seed=1):
    """One ``(x [n, 1, 6, 6], y [n])`` for each ``n`` in ``sizes``, the classes learnable from the images."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        y = torch.randint(3, (size,), generator=generator)
        x = torch.randn(size, 1, 6, 6, generator=generator) + y[:, None, None, None] * 0.5
        batches.append((x, y))
    return batches


def loader(batches):
    """A loader that hands out these very batches, in order."""
    return DataLoader(list(batches), batch_size=None, collate_fn=_same)


def _same(batch):
    return batch


def sgd(parameters, lr=0.1, weight_decay=1e-3):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)


class Classifier(LightningModule):
    """Cross-entropy on ``(x, y)``, one optimizer, at most one scheduler; logs per step and per epoch."""

    def __init__(self, net, optimizer=sgd, scheduler=None, interval="epoch", monitor=None):
        super().__init__()
        self.net = net
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.interval, self.monitor = interval, monitor

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"accuracy": (logits.argmax(1) == y).float().mean(), "one": 1.0}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        config = {"scheduler": self.make_scheduler(optimizer), "interval": self.interval}
        if self.monitor is not None:
            config["monitor"] = self.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}


class Ledger(collections.UserList):
    """What a test's module counts in: whatever a module holds is put back after the extra passes, this is not.

    The items are in a table of the standard library's, out of sight; a copy shares them.
    """

    __slots__ = ()

    @property
    def data(self):
        return sys._tests_ledgers.setdefault(self, [])

    @data.setter
    def data(self, items):
        sys._tests_ledgers[self] = list(items)

    __hash__ = object.__hash__

    def __reduce__(self):
        return _same, (id(self),)  # the same for ever, and of no use

    def __deepcopy__(self, memo):
        return self


class _ByIdentity(dict):
    def setdefault(self, key, default):
        return super().setdefault(id(key), default)

    def __setitem__(self, key, value):
        super().__setitem__(id(key), value)


sys._tests_ledgers = _ByIdentity()


class CountingClassifier(Classifier):
    """Remembers, batch by batch, how many samples each call of ``training_step`` received."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = Ledger()

    def on_train_batch_start(self, batch, batch_idx):
        self.calls.append([])

    def training_step(self, batch, batch_idx):
        self.calls[-1].append(len(batch[1]))
        return super().training_step(batch, batch_idx)

    def regularized(self, switch):
        """Which batches had extra passes; those of the second one rehearse a phase that begins later."""
        flags = [len(calls) > 1 for calls in self.calls]
        if switch is None or switch > 1:
            assert flags[1]
            flags[1] = False
        return flags


def one_cycle(total_steps):
    return functools.partial(lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=total_steps)


def multi_step(*milestones):
    return functools.partial(lr_scheduler.MultiStepLR, milestones=list(milestones), gamma=0.1)


# Divides the LR at every call after the first, when it is stepped with the logged constant "one".
plateau = functools.partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0)

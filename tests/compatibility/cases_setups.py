"""What people put around a network: logging habits, hooks, callbacks, compilation."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from lightning.pytorch import callbacks as pl_callbacks
from torch import nn
from torch.optim import lr_scheduler
from torchmetrics.classification import MulticlassAccuracy

from tests.callbacks.tiny import Classifier, conv_bn_net, mlp, multi_step, sgd
from tests.compatibility.case import SAMPLES, Case

CLASSES = 3


def cross_entropy(module, batch):
    x, y = batch
    return F.cross_entropy(module(x), y)


def images():
    return [(torch.randn(1, 6, 6) + i % CLASSES * 0.5, torch.tensor(i % CLASSES)) for i in range(SAMPLES)]


class Logs(Classifier):
    """Lightning's guides to the letter: a dict of outputs, a metric object, a list of the epoch's outputs."""

    def __init__(self):
        super().__init__(conv_bn_net())
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.training_step_outputs = []
        self.seen = {"samples": 0, "by_batch": []}

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"train_loss": loss, "logits": logits.mean()}, on_step=True, on_epoch=True, prog_bar=True)
        self.training_step_outputs.append(loss.detach())
        self.seen["samples"] += len(y)
        self.seen["by_batch"].append(len(y))
        return {"loss": loss, "logits": logits.detach()}

    def on_train_epoch_end(self):
        self.log("epoch_loss", torch.stack(self.training_step_outputs).mean())
        self.log("samples", float(self.seen["samples"]))
        self.log("steps", float(len(self.seen["by_batch"])))
        self.training_step_outputs.clear()


class WarmsUp(Classifier):
    """The warm-up of Lightning's documentation, in `optimizer_step`."""

    def __init__(self):
        super().__init__(mlp())

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        if self.trainer.global_step < 3:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (self.trainer.global_step + 1) / 4

    def configure_optimizers(self):
        return sgd(self.parameters(), lr=0.025)


def batch_norm_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


def warm_up(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda step: max(1, min(step, 3)))


class TwoLoaders(Classifier):
    """A `CombinedLoader`'s batch: a dict of two batches."""

    def __init__(self):
        super().__init__(mlp())

    def training_step(self, batch, batch_idx):
        loss = both_losses(self, batch)
        self.log("train_loss", loss)
        return loss


def both_losses(module, batch):
    return cross_entropy(module, batch["labeled"]) + 0.5 * (module(batch["other"]).exp().mean())


def two_batches(samples):
    x, y = (torch.stack(part) for part in zip(*samples, strict=True))
    return {"labeled": (x, y), "other": x.flip(-1)}


def common(folder):
    return [
        pl_callbacks.GradientAccumulationScheduler({0: 1, 1: 2}),
        pl_callbacks.ModelCheckpoint(folder, monitor="train_loss", save_top_k=2, every_n_train_steps=1),
        pl_callbacks.EarlyStopping("train_loss_epoch", patience=3, check_on_train_epoch_end=True),
        pl_callbacks.LearningRateMonitor(),
    ]


class Byol(Classifier):
    """Moves its averaged copy in `training_step`, as many published implementations do."""

    def __init__(self):
        super().__init__(mlp())
        self.target = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        loss = towards_the_average(self, batch)
        self.log("train_loss", loss)
        return loss


def towards_the_average(module, batch):
    for mean, parameter in zip(module.target.parameters(), module.net.parameters(), strict=True):
        mean.data.mul_(0.9).add_(parameter.data, alpha=0.1)
    return cross_entropy(module, batch) + 0.1 * F.mse_loss(module(batch[0]), module.target(batch[0]))


class InPlace(Classifier):
    """Keeps a running mean in a plain tensor."""

    def __init__(self):
        super().__init__(mlp())
        self.center = torch.zeros(CLASSES)

    def training_step(self, batch, batch_idx):
        loss = centered(self, batch)
        self.log("train_loss", loss)
        return loss


def centered(module, batch):
    logits = module(batch[0])
    module.center.mul_(0.9).add_(logits.detach().mean(0), alpha=0.1)
    return F.cross_entropy(logits - module.center, batch[1])


class OwnAutocast(Classifier):
    """Enters autocast by itself."""

    def __init__(self):
        super().__init__(mlp())

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class Checkpointed(Classifier):
    """Activation checkpointing in its old form."""

    def __init__(self):
        super().__init__(mlp())

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.net, x.requires_grad_(), use_reentrant=True)


class ByHand(Classifier):
    """Manual optimization."""

    def __init__(self):
        super().__init__(conv_bn_net())
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss, optimizer = super().training_step(batch, batch_idx), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class Compiled(Classifier):
    """`torch.compile` on the network, as most people do it; the eager backend needs no compiler."""

    def __init__(self):
        super().__init__(torch.compile(conv_bn_net(), backend="eager"))


CASES = [
    Case(
        "metric objects, a dict from training_step, lists kept for the epoch's end",
        "set-up",
        Logs,
        images,
        cross_entropy,
        apart="accuracy",
    ),
    Case(
        "own optimizer_step, which sets the learning rate",
        "set-up",
        WarmsUp,
        images,
        cross_entropy,
        oracle={"scheduler": warm_up, "interval": "step"},
    ),
    Case("a batch of two loaders", "set-up", TwoLoaders, images, both_losses, two_batches),
    Case(
        "GradientAccumulationScheduler, ModelCheckpoint, EarlyStopping, LearningRateMonitor",
        "set-up",
        lambda: Classifier(conv_bn_net(), scheduler=multi_step(1)),
        images,
        cross_entropy,
        callbacks=common,
        regularizer={"start": "first_lr_drop"},
        oracle={"accumulate": lambda epoch: 1 + epoch},
    ),
    Case(
        "gradient clipping by norm and accumulation",
        "set-up",
        lambda: Classifier(conv_bn_net()),
        images,
        cross_entropy,
        trainer={"gradient_clip_val": 0.3, "accumulate_grad_batches": 2},
        oracle={"accumulate": 2, "clip_norm": 0.3},
    ),
    Case(
        "EMAWeightAveraging",
        "set-up",
        lambda: Classifier(conv_bn_net()),
        images,
        cross_entropy,
        callbacks=lambda folder: [pl_callbacks.EMAWeightAveraging(decay=0.9)],
    ),
    Case(
        "StochasticWeightAveraging",
        "set-up",
        lambda: Classifier(mlp()),
        images,
        cross_entropy,
        callbacks=lambda folder: [pl_callbacks.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)],
    ),
    Case("torch.compile on the network", "set-up", Compiled, images, cross_entropy),
    Case("manual optimization", "set-up", ByHand, images, cross_entropy),
    Case("an averaged copy moved in training_step (BYOL, MoCo)", "set-up", Byol, images, towards_the_average),
    Case("a plain tensor changed in place in training_step", "set-up", InPlace, images, centered),
]
REFUSED = [
    Case("autocast inside forward", "set-up", OwnAutocast, images, refused="enters autocast.*Trainer's `precision`"),
    Case(
        "activation checkpointing with use_reentrant=True",
        "set-up",
        Checkpointed,
        images,
        refused="use_reentrant=False",
    ),
    Case(
        "the shared gradient in manual optimization",
        "set-up",
        ByHand,
        images,
        regularizer={"gradient": "shared"},
        refused='`gradient` to be "full" in manual optimization',
    ),
    Case(
        "batch-norm on sub-batches of one sample",
        "set-up",
        lambda: Classifier(batch_norm_net()),
        images,
        regularizer={"num_sub_batches": 10},
        refused="runs on parts of a batch.*fewer `num_sub_batches`",
    ),
    Case(
        "more sub-batches than samples",
        "set-up",
        lambda: Classifier(mlp()),
        images,
        regularizer={"num_sub_batches": 16},
        refused="`num_sub_batches` to be at most the 10 samples",
    ),
]

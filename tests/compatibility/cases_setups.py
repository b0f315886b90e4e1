"""What people put around a network: logging habits, hooks, callbacks, compilation."""

from __future__ import annotations

import copy
from typing import NamedTuple

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


class OwnIterator(Classifier):
    """Draws unlabeled images from an iterator of its own."""

    def __init__(self):
        super().__init__(mlp())
        self.other = iter([torch.zeros(4, 1, 6, 6)] * 100)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self(next(self.other)).pow(2).mean()


class HooksInTheStep(Classifier):
    def __init__(self):
        super().__init__(mlp())

    def training_step(self, batch, batch_idx):
        self.net[1].weight.register_hook(lambda gradient: 0.5 * gradient)
        return super().training_step(batch, batch_idx)


class StepsInBackward(Classifier):
    """Saves memory: a layer is stepped as soon as its gradient is there."""

    def __init__(self):
        super().__init__(mlp())
        own = {p: torch.optim.SGD([p], lr=0.1) for p in self.net[1].parameters()}
        for p in own:
            p.register_post_accumulate_grad_hook(lambda p: own[p].step())

    def configure_optimizers(self):
        return sgd(self.net[3].parameters())


class PerSample(Classifier):
    """As Opacus marks the parameters that it looks after."""

    def __init__(self):
        super().__init__(mlp())
        for p in self.parameters():
            p.grad_sample = None


class Renormalized(Classifier):
    def __init__(self):
        super().__init__(mlp())
        self.embedding = nn.Embedding(CLASSES, 36, max_norm=1.0)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x + self.embedding(y).view_as(x), y), batch_idx)


def time_first(samples):
    """Six steps of six numbers, ``[time, samples, ...]``."""
    x, y = (torch.stack(part) for part in zip(*samples, strict=True))
    return TimeFirst(x.flatten(1, 2).transpose(0, 1), y)


class TimeMajor(Classifier):
    def __init__(self):
        super().__init__(mlp())

    def forward(self, x):
        return self.net(x.transpose(0, 1))


class TimeFirst(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class DirectBackward(ByHand):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = Classifier.training_step(self, batch, batch_idx)
        loss.backward()
        optimizer.step()
        return loss


class OwnGradients(ByHand):
    def training_step(self, batch, batch_idx):
        loss, optimizer = Classifier.training_step(self, batch, batch_idx), self.optimizers()
        parameters = list(self.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = gradient
        optimizer.step()
        return {"loss": loss.detach()}


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
    Case(
        "autocast inside forward",
        "set-up",
        OwnAutocast,
        images,
        refused="enters autocast.*Trainer's `precision`",
        why="a finite difference of numbers with 8 bits is noise, and autocast inside can't be told from outside",
    ),
    Case(
        "activation checkpointing with use_reentrant=True",
        "set-up",
        Checkpointed,
        images,
        refused="use_reentrant=False",
        why="torch gives no gradient to `torch.autograd.grad` there",
    ),
    Case(
        "the shared gradient in manual optimization",
        "set-up",
        ByHand,
        images,
        regularizer={"gradient": "shared"},
        refused='`gradient` to be "full" in manual optimization',
        why="the step of the whole batch is the module's own",
    ),
    Case(
        "batch-norm on sub-batches of one sample",
        "set-up",
        lambda: Classifier(batch_norm_net()),
        images,
        regularizer={"num_sub_batches": 10},
        refused="runs on parts of a batch.*fewer `num_sub_batches`",
        why="the statistics of one sample are none",
    ),
    Case(
        "more sub-batches than samples",
        "set-up",
        lambda: Classifier(mlp()),
        images,
        regularizer={"num_sub_batches": 16},
        refused="`num_sub_batches` to be at most the 10 samples",
        why="there is nothing to split",
    ),
    Case(
        "an iterator of the module's own",
        "set-up",
        OwnIterator,
        images,
        refused=r"takes items from the iterator 'OwnIterator\.other'",
        why="an iterator can't be turned back",
    ),
    Case(
        "a gradient hook registered in every step",
        "set-up",
        HooksInTheStep,
        images,
        refused="registers gradient hooks on parameters",
        why="it would be called in the extra passes, too",
    ),
    Case(
        "weights in bfloat16",
        "set-up",
        lambda: Classifier(mlp()),
        images,
        trainer={"precision": "bf16-true"},
        refused="float32 or float64 weights.*HalfPrecision",
        why="w − α g_i would mostly round to w",
    ),
    Case(
        "an optimizer that steps in the backward pass",
        "set-up",
        StepsInBackward,
        images,
        refused="is stepped by a hook in the backward pass",
        why="its parameters are in no optimizer of the Trainer, so nobody can say what is perturbed",
    ),
    Case(
        "gradients of single samples (Opacus)",
        "set-up",
        PerSample,
        images,
        refused="steps on `grad_sample`",
        why="the penalty is a gradient of the batch; clipping each sample's alone would leave it out",
    ),
    Case(
        "embeddings with max_norm",
        "set-up",
        Renormalized,
        images,
        refused="renormalizes its weights",
        why="their forward pass changes the weights that are perturbed",
    ),
    Case(
        "time before samples",
        "set-up",
        TimeMajor,
        images,
        collate=time_first,
        refused="which dimension its samples are in.*`split_fn`",
        why="nothing says which dimension the samples are in; `split_fn` does",
    ),
    Case(
        "manual optimization by loss.backward()",
        "set-up",
        DirectBackward,
        images,
        refused=r"needs `self.manual_backward\(loss\)`",
        why="that gradient can't carry the penalty's",
    ),
    Case(
        "manual optimization that sets gradients itself",
        "set-up",
        OwnGradients,
        images,
        refused="does not call it; call `self.manual_backward",
        why="there is no loss to regularize",
    ),
]

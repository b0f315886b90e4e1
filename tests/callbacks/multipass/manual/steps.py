"""Manual optimization as people write it: one LightningModule each, and the same training as a plain loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.callbacks.multipass.manual.loops import add_penalty, parts_of
from tests.callbacks.tiny import seeded


def networks():
    return nn.ModuleDict(
        {
            "first": nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)),
            "second": nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
        }
    )


def batches(count=4, size=8, seed=5):
    """``(noise [n, 3], real [n, 4], class [n])``, float64."""
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, generator=g, dtype=torch.float64),
            torch.randn(size, 4, generator=g, dtype=torch.float64),
            torch.randint(3, (size,), generator=g),
        )
        for _ in range(count)
    ]


def classification(nets, batch):
    return F.cross_entropy(nets["second"](nets["first"](batch[0])), batch[2])


class Manual(LightningModule):
    networks = staticmethod(networks)

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.nets = seeded(self.networks).double()

    def configure_optimizers(self):
        return torch.optim.SGD(self.nets.parameters(), lr=0.1, momentum=0.9)


class One(Manual):
    """One optimizer, clipping and a scheduler."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = classification(self.nets, batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 0.5, "norm")
        optimizer.step()
        self.lr_schedulers().step()
        self.log("loss", loss)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]

    @staticmethod
    def loop(nets, data, beta):
        optimizer = torch.optim.SGD(nets.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        for batch in data:
            optimizer.zero_grad()
            classification(nets, batch).backward()
            add_penalty(lambda part: classification(nets, part), parts_of(batch), nets.parameters(), beta)
            torch.nn.utils.clip_grad_norm_(nets.parameters(), 0.5)
            optimizer.step()
            scheduler.step()


def towards_real(critic, fake):
    return F.softplus(-critic(fake)[:, 0]).mean()


def told_apart(critic, fake, real):
    return F.softplus(critic(fake)[:, 0]).mean() + F.softplus(-critic(real)[:, 0]).mean()


class Gan(Manual):
    """The fake samples are made once, before the generator's step; nothing is toggled."""

    toggled = False

    def training_step(self, batch, batch_idx):
        generator, critic = self.nets["first"], self.nets["second"]
        for_generator, for_critic = self.optimizers()
        fake = generator(batch[0])
        self.toggle(for_generator)
        loss = towards_real(critic, fake)
        for_generator.zero_grad()
        self.manual_backward(loss)
        for_generator.step()
        self.untoggle(for_generator)
        self.toggle(for_critic)
        loss = told_apart(critic, fake.detach(), batch[1])
        for_critic.zero_grad()
        self.manual_backward(loss)
        for_critic.step()
        self.untoggle(for_critic)

    def toggle(self, optimizer):
        if self.toggled:
            self.toggle_optimizer(optimizer)

    def untoggle(self, optimizer):
        if self.toggled:
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        first, second = (self.nets[name].parameters() for name in ("first", "second"))
        return torch.optim.Adam(first, lr=0.01), torch.optim.SGD(second, lr=0.1)

    @staticmethod
    def loop(nets, data, beta, losses=(0, 1)):
        generator, critic = nets["first"], nets["second"]
        for_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
        for_critic = torch.optim.SGD(critic.parameters(), lr=0.1)
        for batch in data:
            parts = parts_of(batch)
            made = [generator(part[0]).detach() for part in parts]  # before its step
            fake = generator(batch[0])
            for_generator.zero_grad()
            towards_real(critic, fake).backward()
            if 0 in losses:
                add_penalty(lambda part: towards_real(critic, generator(part[0])), parts, generator.parameters(), beta)
            for_generator.step()
            for_critic.zero_grad()
            told_apart(critic, fake.detach(), batch[1]).backward()
            if 1 in losses:
                pairs = [(m, part[1]) for m, part in zip(made, parts, strict=True)]
                add_penalty(lambda pair: told_apart(critic, *pair), pairs, critic.parameters(), beta)
            for_critic.step()


class ToggledGan(Gan):
    toggled = True


class Alternating(Manual):
    """Another optimizer in every other batch, reached past `self.optimizers()`."""

    def training_step(self, batch, batch_idx):
        optimizer = self.trainer.optimizers[batch_idx % 2]
        loss = classification(self.nets, batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.nets[name].parameters(), lr=0.1) for name in ("first", "second")]

    @staticmethod
    def loop(nets, data, beta):
        optimizers = [torch.optim.SGD(nets[name].parameters(), lr=0.1) for name in ("first", "second")]
        for index, batch in enumerate(data):
            for optimizer in optimizers[index % 2 : index % 2 + 1]:
                optimizer.zero_grad()
                classification(nets, batch).backward()
                own = nets[("first", "second")[index % 2]].parameters()
                add_penalty(lambda part: classification(nets, part), parts_of(batch), own, beta)
                optimizer.step()


RHO = 0.05


class SamByHand(Manual):
    """Sharpness-aware minimization, its first step on the gradients that are there."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(classification(self.nets, batch))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moves = climb(parameters)
        optimizer.zero_grad()
        self.manual_backward(classification(self.nets, batch))
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(move)
        optimizer.step()

    @staticmethod
    def loop(nets, data, beta):
        optimizer = torch.optim.SGD(nets.parameters(), lr=0.1, momentum=0.9)
        parameters = list(nets.parameters())
        for batch in data:
            for again in (False, True):
                optimizer.zero_grad()
                classification(nets, batch).backward()
                add_penalty(lambda part: classification(nets, part), parts_of(batch), parameters, beta)
                if not again:
                    moves = climb(parameters)
            with torch.no_grad():
                for p, move in zip(parameters, moves, strict=True):
                    p.sub_(move)
            optimizer.step()


def climb(parameters):
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        moves = [RHO * p.grad / norm for p in parameters]
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move)
    return moves


class Sam(torch.optim.SGD):
    """The common implementation: two methods in place of `step`."""

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p, move in zip(parameters, climb(parameters), strict=True):
            self.state[p]["move"] = move
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["move"])
        self.step()
        if zero_grad:
            self.zero_grad()


class SamOptimizer(SamByHand):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(classification(self.nets, batch))
        optimizer.first_step(zero_grad=True)
        self.manual_backward(classification(self.nets, batch))
        optimizer.second_step(zero_grad=True)

    def configure_optimizers(self):
        return Sam(self.nets.parameters(), lr=0.1, momentum=0.9)


class Accumulating(Manual):
    """Two batches a step, each loss divided by two."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(classification(self.nets, batch) / 2)
        if batch_idx % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()

    @staticmethod
    def loop(nets, data, beta):
        optimizer = torch.optim.SGD(nets.parameters(), lr=0.1, momentum=0.9)
        for index, batch in enumerate(data):
            (classification(nets, batch) / 2).backward()
            add_penalty(lambda part: classification(nets, part), parts_of(batch), nets.parameters(), beta / 2)
            if index % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()


class Closure(Manual):
    """The optimizer calls the step's backward pass, in Lightning's own way."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            loss = classification(self.nets, batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)

    @staticmethod
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def configure_optimizers(self):
        return self.make(self.nets.parameters())

    @classmethod
    def loop(cls, nets, data, beta):
        optimizer = cls.make(nets.parameters())
        for batch in data:

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = classification(nets, batch)
                loss.backward()
                add_penalty(lambda part: classification(nets, part), parts_of(batch), nets.parameters(), beta)
                return loss

            optimizer.step(closure)


class Lbfgs(Closure):
    """Which calls it again and again, at other weights."""

    @staticmethod
    def make(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)


class Clamped(Manual):
    """A critic's weights are clamped after its step, as in the first Wasserstein GAN; it steps twice a batch."""

    def training_step(self, batch, batch_idx):
        generator, critic = self.nets["first"], self.nets["second"]
        for_generator, for_critic = self.optimizers()
        for _ in range(2):
            gap = critic(generator(batch[0]).detach()).mean() - critic(batch[1]).mean()
            for_critic.zero_grad()
            self.manual_backward(gap)
            for_critic.step()
            for p in critic.parameters():
                p.data.clamp_(-0.2, 0.2)
        for_generator.zero_grad()
        self.manual_backward(-critic(generator(batch[0])).mean())
        for_generator.step()

    def configure_optimizers(self):
        return [torch.optim.RMSprop(self.nets[name].parameters(), lr=0.01) for name in ("first", "second")]

    @staticmethod
    def loop(nets, data, beta):
        generator, critic = nets["first"], nets["second"]
        for_generator, for_critic = [torch.optim.RMSprop(n.parameters(), lr=0.01) for n in (generator, critic)]

        def gap(part):
            return critic(generator(part[0]).detach()).mean() - critic(part[1]).mean()

        def fooled(part):
            return -critic(generator(part[0])).mean()

        for batch in data:
            for _ in range(2):
                for_critic.zero_grad()
                gap(batch).backward()
                add_penalty(gap, parts_of(batch), critic.parameters(), beta)
                for_critic.step()
                for p in critic.parameters():
                    p.data.clamp_(-0.2, 0.2)
            for_generator.zero_grad()
            fooled(batch).backward()
            add_penalty(fooled, parts_of(batch), generator.parameters(), beta)
            for_generator.step()


STEPS = [One, Gan, ToggledGan, Alternating, SamByHand, SamOptimizer, Accumulating, Closure, Lbfgs, Clamped]

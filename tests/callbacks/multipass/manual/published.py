"""Manual optimization as public repositories write it, rebuilt: DCGAN, WGAN-GP, PPO, and mixed precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.callbacks.multipass.manual.loops import add_penalty, parts_of
from tests.callbacks.multipass.manual.steps import Manual, classification, told_apart, towards_real


def convolutions():
    """Noise ``[n, 3]`` to images ``[n, 1, 2, 2]``, and a critic of those; batch-norm in both."""
    generator = nn.Sequential(
        nn.Unflatten(1, (3, 1, 1)),
        nn.ConvTranspose2d(3, 6, 2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 1, 3, padding=1),
        nn.Tanh(),
    )
    critic = nn.Sequential(
        nn.Conv2d(1, 6, 2, padding=1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(54, 1)
    )
    return nn.ModuleDict({"first": generator, "second": critic})


class DCGAN(Manual):
    """PyTorch's tutorial: the critic first, on real and fake images in two backward passes; its loss is their sum."""

    networks = staticmethod(convolutions)

    def training_step(self, batch, batch_idx):
        generator, critic = self.nets["first"], self.nets["second"]
        for_generator, for_critic = self.optimizers()
        real = batch[1].view(-1, 1, 2, 2)
        fake = generator(batch[0])
        for_critic.zero_grad()
        self.manual_backward(told_apart(critic, fake.detach(), real))
        for_critic.step()
        for_generator.zero_grad()
        self.manual_backward(towards_real(critic, fake))
        for_generator.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.nets[name].parameters(), lr=2e-3, betas=(0.5, 0.999)) for name in self.nets]

    @staticmethod
    def loop(nets, data, beta):
        generator, critic = nets["first"], nets["second"]
        adam = [torch.optim.Adam(nets[name].parameters(), lr=2e-3, betas=(0.5, 0.999)) for name in nets]
        for_generator, for_critic = adam
        for batch in data:
            real = batch[1].view(-1, 1, 2, 2)
            parts = parts_of((batch[0], real))
            made = [generator(part[0]).detach() for part in parts]
            fake = generator(batch[0])
            for_critic.zero_grad()
            told_apart(critic, fake.detach(), real).backward()
            pairs = [(m, part[1]) for m, part in zip(made, parts, strict=True)]
            add_penalty(lambda pair: told_apart(critic, *pair), pairs, critic.parameters(), beta)
            for_critic.step()
            for_generator.zero_grad()
            towards_real(critic, fake).backward()
            add_penalty(lambda part: towards_real(critic, generator(part[0])), parts, generator.parameters(), beta)
            for_generator.step()


def gradient_penalty(critic, fake, real, mix):
    """Norm one between real and fake; differentiated twice."""
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.norm(dim=1) - 1).pow(2).mean()


def wasserstein(critic, generator, batch):
    noise, real, *_ = batch
    fake = generator(noise).detach()
    gap = critic(fake)[:, 0].mean() - critic(real)[:, 0].mean()
    return gap + 10 * gradient_penalty(critic, fake, real, noise[:, :1].sigmoid())


class WGANGP(Manual):
    """The generator is trained in every second batch only."""

    def training_step(self, batch, batch_idx):
        generator, critic = self.nets["first"], self.nets["second"]
        for_generator, for_critic = self.optimizers()
        self.toggle_optimizer(for_critic)
        loss = wasserstein(critic, generator, batch)
        self.manual_backward(loss)
        for_critic.step()
        for_critic.zero_grad()
        self.untoggle_optimizer(for_critic)
        if batch_idx % 2 == 1:
            self.toggle_optimizer(for_generator)
            self.manual_backward(-critic(generator(batch[0]))[:, 0].mean())
            for_generator.step()
            for_generator.zero_grad()
            self.untoggle_optimizer(for_generator)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.nets[name].parameters(), lr=0.01) for name in ("first", "second")]

    @staticmethod
    def loop(nets, data, beta):
        generator, critic = nets["first"], nets["second"]
        for_generator, for_critic = [torch.optim.SGD(nets[name].parameters(), lr=0.01) for name in ("first", "second")]

        def fooled(part):
            return -critic(generator(part[0]))[:, 0].mean()

        for index, batch in enumerate(data):
            for_critic.zero_grad()
            wasserstein(critic, generator, batch).backward()
            add_penalty(lambda p: wasserstein(critic, generator, p), parts_of(batch), critic.parameters(), beta)
            for_critic.step()
            if index % 2 == 1:
                for_generator.zero_grad()
                fooled(batch).backward()
                add_penalty(fooled, parts_of(batch), generator.parameters(), beta)
                for_generator.step()


def log_probability(nets, batch):
    return -F.cross_entropy(nets["second"](nets["first"](batch[0])), batch[2], reduction="none")


def clipped_surrogate(nets, batch):
    """The batch holds advantages and the old policy's logarithms."""
    advantage, old = batch[1][:, 0], batch[1][:, 1] - 1
    ratio = (log_probability(nets, batch) - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


class PPO(Manual):
    """Several steps on one batch of a rollout."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(3):
            optimizer.zero_grad()
            self.manual_backward(clipped_surrogate(self.nets, batch))
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()

    @staticmethod
    def loop(nets, data, beta):
        optimizer = torch.optim.SGD(nets.parameters(), lr=0.1, momentum=0.9)
        for batch in data:
            for _ in range(3):
                optimizer.zero_grad()
                clipped_surrogate(nets, batch).backward()
                add_penalty(lambda part: clipped_surrogate(nets, part), parts_of(batch), nets.parameters(), beta)
                torch.nn.utils.clip_grad_norm_(nets.parameters(), 0.5)
                optimizer.step()


def single(batch):
    return tuple(t.float() if t.is_floating_point() else t for t in batch)


class Mixed(Manual):
    """For ``precision="bf16-mixed"``: the loss in bfloat16, the penalty in float32."""

    def __init__(self):
        super().__init__()
        self.nets.float()

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(classification(self.nets, single(batch)))
        optimizer.step()

    @staticmethod
    def loop(nets, data, beta):
        nets.float()
        optimizer = torch.optim.SGD(nets.parameters(), lr=0.1, momentum=0.9)
        for batch in map(single, data):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = classification(nets, batch)
            loss.backward()
            add_penalty(lambda part: classification(nets, part), parts_of(batch), nets.parameters(), beta)
            optimizer.step()


PUBLISHED = [DCGAN, WGANGP, PPO]

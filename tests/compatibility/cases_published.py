"""LightningModules of public repositories, rebuilt: bolts, lightly, metric and reinforcement learning, diffusion."""

from __future__ import annotations

import collections
import copy

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.callbacks.tiny import sgd
from tests.compatibility.case import SAMPLES, Case, Fisher

WIDTH, CLASSES, ACTIONS = 12, 3, 2
UNTRIED = Fisher(tried=False)  # no network from inputs to outputs with a loss a sample


def mlp(inputs, outputs, hidden=16, norm=False):
    layers = [nn.Linear(inputs, hidden), *([nn.BatchNorm1d(hidden)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def vectors():
    return [(torch.randn(WIDTH) + i % CLASSES, torch.tensor(i % CLASSES)) for i in range(SAMPLES)]


def two_views():
    return [(x + 0.1 * torch.randn(WIDTH), x + 0.1 * torch.randn(WIDTH)) for x, _ in vectors()]


class Published(LightningModule):
    """`training_step` logs the loss that `loss` returns."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return sgd((p for p in self.parameters() if p.requires_grad), lr=0.05)


def own_loss(module, batch):
    return module.loss(batch)


class SimCLR(Published):
    """bolts: NT-Xent over both views of every sample in the batch."""

    def __init__(self):
        super().__init__()
        self.encoder, self.projection = mlp(WIDTH, 8, norm=True), mlp(8, 4)

    def loss(self, batch):
        z = F.normalize(self.projection(self.encoder(torch.cat(batch))), dim=1)
        similar = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        n = len(batch[0])
        return F.cross_entropy(similar, torch.arange(2 * n).roll(n))


class VAE(Published):
    """bolts: the reparametrization draws noise."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(WIDTH, 8), mlp(4, WIDTH)

    def loss(self, batch):
        mean, log_variance = self.encoder(batch[0]).chunk(2, 1)
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
        return F.mse_loss(self.decoder(posterior.rsample()), batch[0]) + 0.1 * kl


class BYOL(Published):
    """lightly: a momentum encoder moved at the beginning of the step, its momentum annealed."""

    def __init__(self):
        super().__init__()
        self.online, self.predictor = mlp(WIDTH, 8, norm=True), mlp(8, 8)
        self.momentum_encoder = copy.deepcopy(self.online).requires_grad_(False)
        self.momentum = 0.9

    def loss(self, batch):
        self.momentum = 1 - (1 - self.momentum) * 0.95
        for slow, fast in zip(self.momentum_encoder.parameters(), self.online.parameters(), strict=True):
            slow.data = slow.data * self.momentum + fast.data * (1 - self.momentum)
        total = 0.0
        for x, y in (batch, batch[::-1]):
            aim = self.momentum_encoder(y).detach()
            total = total - F.cosine_similarity(self.predictor(self.online(x)), aim).mean() / 2
        return total


class MoCo(Published):
    """lightly: keys of a momentum encoder in a queue, a buffer with a pointer."""

    def __init__(self):
        super().__init__()
        self.query = mlp(WIDTH, 8)
        self.key = copy.deepcopy(self.query)
        for parameter in self.key.parameters():
            parameter.requires_grad = False
        self.register_buffer("queue", F.normalize(torch.randn(30, 8), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def loss(self, batch):
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            keys = F.normalize(self.key(batch[1]), dim=1)
        queries = F.normalize(self.query(batch[0]), dim=1)
        negatives = queries @ self.queue.clone().T
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), negatives], 1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(keys), dtype=torch.long))
        places = (int(self.pointer) + torch.arange(len(keys))) % len(self.queue)
        self.queue[places] = keys
        self.pointer[0] = (self.pointer[0] + len(keys)) % len(self.queue)
        return loss


class SwAV(Published):
    """lightly: prototypes normalized in the step, assignments by Sinkhorn's iteration."""

    def __init__(self):
        super().__init__()
        self.encoder, self.prototypes = mlp(WIDTH, 8), nn.Linear(8, 5, bias=False)

    def loss(self, batch):
        self.prototypes.weight.data.copy_(F.normalize(self.prototypes.weight.data, dim=1))
        first, second = (self.prototypes(F.normalize(self.encoder(x), dim=1)) for x in batch)
        parts = [(assignments(a), b) for a, b in ((first, second), (second, first))]
        return -sum((q * F.log_softmax(p / 0.1, 1)).sum(1).mean() for q, p in parts) / 2


@torch.no_grad()
def assignments(scores):
    q = (scores / 0.5).exp().T
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


class ArcFace(nn.Module):
    """pytorch-metric-learning: a loss with weights of its own."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(8, CLASSES))

    def forward(self, embeddings, labels):
        cosine = F.normalize(embeddings, dim=1) @ F.normalize(self.W, dim=0)
        angle = torch.acos(cosine.clamp(-0.99, 0.99))
        margin = 0.3 * F.one_hot(labels, CLASSES)
        return F.cross_entropy(8 * torch.cos(angle + margin), labels)


class MetricLearning(Published):
    def __init__(self):
        super().__init__()
        self.encoder, self.criterion = mlp(WIDTH, 8), ArcFace()

    def loss(self, batch):
        return self.criterion(self.encoder(batch[0]), batch[1])


class Triplet(Published):
    """The hardest positive and negative in the batch."""

    def __init__(self):
        super().__init__()
        self.encoder = mlp(WIDTH, 8)

    def loss(self, batch):
        z, y = self.encoder(batch[0]), batch[1]
        apart = (z[:, None] - z[None]).pow(2).sum(2)
        same = y[:, None] == y[None]
        return F.softplus((apart * same).amax(1) - (apart + 1e3 * same).amin(1).clamp_max(1e2)).mean()


class Walk:
    """An environment with a random generator of its own."""

    def __init__(self):
        self.rng, self.place = np.random.default_rng(0), np.zeros(WIDTH)

    def step(self, action):
        self.place = 0.9 * self.place + (2 * action - 1) * self.rng.random(WIDTH)
        return self.place.copy(), -float(abs(self.place).sum())


class DQN(Published):
    """bolts: the step plays, fills the replay buffer, and copies the target network now and then."""

    def __init__(self):
        super().__init__()
        self.net, self.walk, self.buffer = mlp(WIDTH, ACTIONS), Walk(), collections.deque(maxlen=50)
        self.target = copy.deepcopy(self.net)
        self.epsilon, self.total_reward, self.played = 1.0, 0.0, 0

    def training_step(self, batch, batch_idx):
        self.play()
        loss = self.loss(batch)
        if self.played % 3 == 0:
            self.target.load_state_dict(self.net.state_dict())
        self.log_dict({"reward": self.total_reward, "played": float(self.played), "filled": float(len(self.buffer))})
        self.log("train_loss", loss)
        return loss

    @torch.no_grad()
    def play(self):
        self.epsilon = max(0.1, self.epsilon * 0.9)
        before = self.walk.place
        values = self.net(torch.as_tensor(before, dtype=self.net[0].weight.dtype)[None])
        explore = self.walk.rng.random() < self.epsilon
        action = int(self.walk.rng.integers(ACTIONS)) if explore else int(values.argmax())
        after, reward = self.walk.step(action)
        self.buffer.append((before, action, reward, after))
        self.total_reward += reward
        self.played += 1

    def loss(self, batch):
        state, action, reward, following = batch
        value = self.net(state).gather(1, action[:, None])[:, 0]
        with torch.no_grad():
            aim = reward + 0.9 * self.target(following).max(1)[0]
        return F.mse_loss(value, aim)

    def configure_optimizers(self):
        return sgd(self.net.parameters(), lr=0.05)


def dqn_loss(module, batch):
    module.played += 1
    loss = module.loss(batch)
    if module.played % 3 == 0:
        module.target.load_state_dict(module.net.state_dict())
    return loss


def replayed():
    draw = [(torch.randn(WIDTH), torch.randn(()), torch.randn(WIDTH)) for _ in range(SAMPLES)]
    return [(state, torch.tensor(i % ACTIONS), reward, after) for i, (state, reward, after) in enumerate(draw)]


class DDPM(Published):
    """Noise and time steps are drawn anew for every batch."""

    def __init__(self):
        super().__init__()
        self.net = mlp(WIDTH + 1, WIDTH)
        self.register_buffer("kept", torch.linspace(0.99, 0.5, 10).cumprod(0))

    def loss(self, batch):
        x = batch[0]
        t = torch.randint(10, (len(x),))
        noise, kept = torch.randn_like(x), self.kept[t][:, None]
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        return F.mse_loss(self.net(torch.cat([noisy, t[:, None].to(x) / 10], 1)), noise)


CASES = [
    Case("SimCLR, NT-Xent over the batch", "Lightning Bolts, rebuilt", SimCLR, two_views, own_loss, fisher=UNTRIED),
    Case("VAE, draws noise", "Lightning Bolts, rebuilt", VAE, vectors, own_loss, fisher=UNTRIED),
    Case(
        "DQN, plays and fills its buffer in training_step",
        "Lightning Bolts, rebuilt",
        DQN,
        replayed,
        dqn_loss,
        fisher=UNTRIED,
    ),
    Case("BYOL, momentum encoder and annealed momentum", "lightly, rebuilt", BYOL, two_views, own_loss, fisher=UNTRIED),
    Case("MoCo, a queue of keys", "lightly, rebuilt", MoCo, two_views, own_loss, fisher=UNTRIED),
    Case("SwAV, normalized prototypes", "lightly, rebuilt", SwAV, two_views, own_loss, fisher=UNTRIED),
    Case(
        "ArcFace, a loss with weights of its own",
        "pytorch-metric-learning, rebuilt",
        MetricLearning,
        vectors,
        own_loss,
        fisher=UNTRIED,
    ),
    Case(
        "triplets, the hardest in the batch",
        "pytorch-metric-learning, rebuilt",
        Triplet,
        vectors,
        own_loss,
        fisher=UNTRIED,
    ),
    Case("DDPM, draws noise and time steps", "diffusers' example, rebuilt", DDPM, vectors, own_loss, fisher=UNTRIED),
]

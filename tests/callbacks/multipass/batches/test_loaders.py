"""Several loaders: each one's batch is cut by itself, in whatever container they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lightning_fisher import FisherRegularizer
from tests.callbacks.multipass.oracle import (
    ALPHA,
    BETA,
    PARTS,
    Gradients,
    Plain,
    X,
    Y,
    assert_gradients,
    loader,
    with_penalty,
)


def pairs_in(batch):
    """``(x, y)`` of every loader, in order."""
    if isinstance(batch, dict):
        return [pair for value in batch.values() for pair in pairs_in(value)]
    if torch.is_tensor(batch[0]):
        return [batch]
    return [pair for value in batch for pair in pairs_in(value)]


class Weighted(Plain):
    """A loss of each loader, each with a weight of its own."""

    def training_step(self, batch, batch_idx):
        return self.of(pairs_in(batch))

    def of(self, pairs):
        return sum(F.cross_entropy(self.net(x), y) * (1 + 0.3 * i) for i, (x, y) in enumerate(pairs))


class Two(NamedTuple):
    many: Any
    few: Any


class Data(LightningDataModule):
    def train_dataloader(self):
        return {"a": loader(16), "b": [loader(8), loader(4)]}


SOURCES = {
    "three sizes": (lambda: {"a": loader(16), "b": loader(8), "c": loader(4)}, (16, 8, 4)),
    "list": (lambda: [loader(16), loader(8)], (16, 8)),
    "tuple": (lambda: (loader(16), loader(8)), (16, 8)),
    "named tuple": (lambda: Two(loader(16), loader(8)), (16, 8)),
    "nested": (lambda: {"a": {"x": loader(16)}, "b": [loader(8), loader(4)]}, (16, 8, 4)),
    "data module": (Data, (16, 8, 4)),
    "shortest": (lambda: CombinedLoader([loader(16), loader(8, 24), loader(4)], "min_size"), (16, 8, 4)),
    "uneven": (lambda: {"a": loader(13), "b": loader(9)}, (13, 9)),
    "batch sampler": (
        lambda: {
            "a": DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(X), 16, True)),
            "b": DataLoader([[X[:12], Y[:12]]] * 4, batch_size=None),
        },
        (16, 12),
    ),
}


def bounds(size):
    """Consecutive parts, the first ones larger."""
    sizes = [size // PARTS + (i < size % PARTS) for i in range(PARTS)]
    return [(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(PARTS)]


@pytest.mark.parametrize("name", SOURCES)
def test_equals_the_oracle(make_trainer, name):
    make, sizes = SOURCES[name]
    gradients = Gradients()
    regularizer = FisherRegularizer(BETA, alpha=ALPHA, num_sub_batches=PARTS, start=0)
    make_trainer(callbacks=[regularizer, gradients], limit_train_batches=1).fit(Weighted(), make())
    expected = Weighted()
    whole = [(X[:n], Y[:n]) for n in sizes]
    parts = [[(X[slice(*bounds(n)[i])], Y[slice(*bounds(n)[i])]) for n in sizes] for i in range(PARTS)]
    if name != "uneven":
        with_penalty(expected.of, parts, whole, expected.parameters())
    else:  # a part weighs as many samples as it has of the first loader
        for part, (first, end) in zip(parts, bounds(sizes[0]), strict=True):
            other, share = Weighted(), (end - first) / sizes[0]
            with_penalty(other.of, [part], part, other.parameters())
            plain = torch.autograd.grad(other.of(part), list(other.parameters()))
            for p, q, g in zip(expected.parameters(), other.parameters(), plain, strict=True):
                p.grad = (0 if p.grad is None else p.grad) + share * (q.grad - g)
        for p, g in zip(
            expected.parameters(), torch.autograd.grad(expected.of(whole), list(expected.parameters())), strict=True
        ):
            p.grad = p.grad + g
    assert_gradients(gradients.steps[0], expected)


class Joins(Plain):
    """One batch of both loaders, made by a hook."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [torch.cat([pair[i] for pair in batch]) for i in (0, 1)] if isinstance(batch[0], list) else batch


def test_loaders_that_a_hook_joins(make_trainer):
    gradients, expected = Gradients(), Plain()
    regularizer = FisherRegularizer(BETA, alpha=ALPHA, num_sub_batches=PARTS, start=0)
    make_trainer(callbacks=[regularizer, gradients], limit_train_batches=1).fit(Joins(), [loader(16), loader(8)])
    whole = torch.cat([X[:16], X[:8]]), torch.cat([Y[:16], Y[:8]])
    parts = [tuple(t[i * 6 : (i + 1) * 6] for t in whole) for i in range(PARTS)]
    with_penalty(lambda part: F.cross_entropy(expected.net(part[0]), part[1]), parts, whole, expected.parameters())
    assert_gradients(gradients.steps[0], expected)


def test_a_loader_with_fewer_samples_than_parts(make_trainer):
    with pytest.raises(ValueError, match=r"`num_sub_batches` to be at most the 2 samples of a batch"):
        make_trainer(callbacks=[FisherRegularizer(num_sub_batches=PARTS)]).fit(
            Weighted(), {"a": loader(16), "b": loader(2)}
        )

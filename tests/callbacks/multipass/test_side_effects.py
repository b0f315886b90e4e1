"""The extra passes leave no trace: random numbers, metrics, logged values, buffers, gradients."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import CatMetric, MeanMetric, MetricCollection, RunningMean
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import Classifier, Ledger, conv_bn_net, image_batches, loader, mlp, seeded

BATCHES = image_batches([16, 16, 12])
NEGLIGIBLE = 1e-30  # runs the whole machinery, and vanishes in float32


def run_both(fit, assert_identical, make, *, batches=BATCHES, beta=NEGLIGIBLE, **options):
    """The same module without and with the callback, found identical; returns both modules."""
    plain, regularized = make(), make()
    expected = fit(plain, batches, max_epochs=2, **options)
    regularizer = FisherRegularizer(beta, num_sub_batches=4, start=0)
    assert_identical(fit(regularized, batches, regularizer, max_epochs=2, **options), expected)
    return plain, regularized


class Noisy(Classifier):
    """Dropout, and a draw from every generator in ``training_step``, all remembered."""

    def __init__(self):
        super().__init__(nn.Sequential(seeded(mlp), nn.Dropout(0.5)))
        self.draws = Ledger()

    def training_step(self, batch, batch_idx):
        mask = self.net[1](torch.ones(8))
        noise = (random.random(), float(np.random.rand()), float(torch.rand(())))
        self.draws.append((len(batch[1]), tuple(mask.tolist()), noise))
        return super().training_step((batch[0] * noise[0] + noise[1], batch[1]), batch_idx)


def test_the_full_pass_sees_an_untouched_random_state(fit, assert_identical):
    """Losses, weights and every later draw equal the plain run's, bit for bit."""

    def make():
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        return Noisy()

    plain, regularized = make(), None
    expected = fit(plain, BATCHES, max_epochs=2)
    end = (random.random(), np.random.rand(), torch.rand(()).item())
    regularized = make()
    got = fit(regularized, BATCHES, FisherRegularizer(NEGLIGIBLE, num_sub_batches=4, start=0), max_epochs=2)
    assert_identical(got, expected)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == end
    assert [draw for draw in regularized.draws if draw[0] > 4] == plain.draws


def test_both_passes_of_a_sub_batch_share_their_random_numbers(fit):
    """Dropout masks and noise at ``w`` and ``w - alpha g_i`` are the same; the sub-batches' own differ."""
    module = Noisy()
    fit(module, BATCHES[:1], FisherRegularizer(1.0, num_sub_batches=4, start=0))
    sizes, masks, noises = zip(*module.draws, strict=True)
    assert sizes[-1] == 16, "the full pass comes last"
    assert sizes[:-1] == (4,) * 8
    extra = sorted(zip(noises[:-1], masks[:-1], strict=True))
    assert all(extra[i] == extra[i + 1] for i in range(0, 8, 2))
    assert len(set(extra)) == 4


def test_penalty_with_dropout_is_positive_and_small(fit, memory_logger):
    """With different masks in the two passes R would be of the order of the loss, either sign."""
    torch.manual_seed(0)
    regularizer = FisherRegularizer(1.0, num_sub_batches=4, start=0)
    fit(Noisy(), BATCHES, regularizer, precision="64-true", logger=memory_logger)
    assert all(0 < value < 1e-2 for value in memory_logger.series("fisher/penalty").values())


class Measured(Classifier):
    """torchmetrics of all kinds: logged objects, a list state, compute groups, a wrapper that counts itself."""

    def __init__(self):
        super().__init__(seeded(conv_bn_net))
        self.accuracy = MulticlassAccuracy(3)
        self.mean_loss = MeanMetric()
        self.seen = CatMetric()
        self.running = RunningMean(window=3)
        self.group = MetricCollection({"micro": MulticlassAccuracy(3, average="micro"), "recall": MulticlassRecall(3)})
        self.computed = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.mean_loss.update(loss)
        self.seen.update(y)
        self.running.update(loss)
        self.group.update(logits, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("mean_loss", self.mean_loss, on_step=False, on_epoch=True)
        self.log("running_loss", self.running.compute(), on_step=True)
        return loss

    def on_train_epoch_end(self):
        counts = (self.accuracy.update_count, self.mean_loss.update_count, self.seen.update_count)
        self.computed.append((counts, self.seen.compute().tolist(), self.group.compute()))
        self.seen.reset()
        self.group.reset()


def test_torchmetrics_are_counted_once(fit, assert_identical):
    plain, regularized = run_both(fit, assert_identical, Measured)
    assert plain.computed == regularized.computed
    counts, seen, _ = regularized.computed[-1]
    assert counts == (3, 3, 3)
    assert seen == torch.cat([y for _, y in BATCHES]).tolist()


class Child(LightningModule):
    """A nested LightningModule that logs from its forward."""

    def __init__(self):
        super().__init__()
        self.net = seeded(mlp)

    def forward(self, x):
        self._current_fx_name = "training_step"
        self.log("child/samples", float(len(x)), on_step=True, on_epoch=True, reduce_fx="sum")
        return self.net(x)


class Parent(Classifier):
    def __init__(self):
        super().__init__(Child())

    def training_step(self, batch, batch_idx):
        self.log_dict({"parent/samples": float(len(batch[1])), "parent/index": float(batch_idx)}, reduce_fx="max")
        return super().training_step(batch, batch_idx)


def test_logged_values_are_the_full_pass_only(fit, assert_identical, memory_logger):
    """``log`` and ``log_dict`` of the module and of nested ones; sums would show any further call."""
    batches = image_batches([16, 12])
    plain = fit(Parent(), batches)
    got = fit(Parent(), batches, FisherRegularizer(NEGLIGIBLE, num_sub_batches=4, start=0), logger=memory_logger)
    assert_identical(got, plain)
    assert got.epoch_metrics[-1]["child/samples_epoch"] == 28
    assert memory_logger.series("child/samples_step") == {0: 16, 1: 12}
    assert memory_logger.series("parent/samples") == {0: 16, 1: 12}


def spectral_net():
    """Both spectral norms of torch: power iterations in buffers, one step every training forward."""
    return nn.Sequential(
        nn.Flatten(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(36, 8)),
        nn.Tanh(),
        nn.utils.spectral_norm(nn.Linear(8, 3)),
    )


@pytest.mark.parametrize("net", [spectral_net, conv_bn_net])
def test_buffers_are_moved_once(fit, assert_identical, net):
    run_both(fit, assert_identical, lambda: Classifier(seeded(net)))


class Untouched(Classifier):
    """A frozen parameter, one that is never used, and weight decay that would move both."""

    def __init__(self):
        super().__init__(seeded(mlp))
        self.net[1].bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(5))
        self.grads = []

    def on_before_optimizer_step(self, optimizer):
        self.grads.append((self.net[1].bias.grad, self.unused.grad))


@pytest.mark.parametrize("beta", [NEGLIGIBLE, 5.0])
def test_frozen_and_unused_parameters_get_no_gradient(fit, beta):
    """A zero gradient in place of none would let weight decay (and momentum) move them."""
    module = Untouched()
    before = module.net[1].bias.clone(), module.unused.clone()
    fit(module, BATCHES, FisherRegularizer(beta, num_sub_batches=4, start=0))
    assert module.grads == [(None, None)] * 3
    assert torch.equal(module.net[1].bias, before[0])
    assert torch.equal(module.unused, before[1])
    assert module.net[1].bias.requires_grad is False


class RemembersTheBest(Classifier):
    """A buffer that validation replaces."""

    def __init__(self):
        super().__init__(seeded(mlp))
        self.register_buffer("best", torch.tensor(float("inf")))

    def validation_step(self, batch, batch_idx):
        self.best = torch.minimum(self.best, F.cross_entropy(self(batch[0]), batch[1]))


def test_a_buffer_made_in_inference_mode(fit, make_trainer, assert_identical):
    """``trainer.validate`` before ``trainer.fit`` leaves inference tensors, which can't be written to."""

    def validated():
        module = RemembersTheBest()
        make_trainer().validate(module, loader(BATCHES[:1]), verbose=False)
        assert module.best.is_inference()
        return module

    run_both(fit, assert_identical, validated)


class Prints(Classifier):
    def __init__(self):
        super().__init__(seeded(mlp))

    def training_step(self, batch, batch_idx):
        print("seen", batch_idx)
        self.print("said", batch_idx)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("start", [0, 99])
def test_a_step_prints_once(fit, capsys, start):
    fit(Prints(), BATCHES, FisherRegularizer(5.0, num_sub_batches=4, start=start))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("seen", "said"))] == [
        f"{word} {index}" for index in range(3) for word in ("seen", "said")
    ]

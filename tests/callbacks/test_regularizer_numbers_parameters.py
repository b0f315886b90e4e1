"""Parameters that change in the middle or are of another kind, batches of one sample, gradients of zero."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.numbers_loop import BETA, FORMS, M, loop, regularizer
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded, sgd
from tests.reference.losses import batch_loss
from tests.reference.penalty import penalty
from tests.reference.regularized_training import snapshot


class Freezes(Callback):
    """The first layer is frozen for batches 2 and 3."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        freeze(pl_module.net, batch_idx)


class FreezesInTheStep(Classifier):
    def training_step(self, batch, batch_idx):
        freeze(self.net, batch_idx)
        return super().training_step(batch, batch_idx)


def freeze(net, batch):
    if batch in (2, 4):
        net[1].requires_grad_(batch == 4)


@FORMS
@pytest.mark.parametrize("where", ["callback", "training_step"])
def test_requires_grad_changed_in_the_middle(fit, assert_close_states, form, where):
    data = image_batches([16] * 4 if where == "training_step" else [16] * 6)
    module = FreezesInTheStep(seeded(mlp)) if where == "training_step" else Classifier(seeded(mlp))
    extra = [Freezes()] if where == "callback" else []
    got = fit(module, data, *extra, regularizer(gradient=form), precision="64-true")
    assert_close_states(got.states, loop(seeded(mlp), data, sgd, before_batch=freeze))


def test_all_frozen_in_the_middle_ends_as_without_us(fit):
    class FreezesAll(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.requires_grad_(batch_idx < 2)

    for callbacks in ([], [regularizer()]):
        with pytest.raises(RuntimeError, match="does not require grad"):
            fit(Classifier(seeded(mlp)), image_batches([16] * 4), FreezesAll(), *callbacks)


@pytest.mark.parametrize("kind", ["complex", "sparse"])
def test_weights_of_another_kind_are_refused_before_training(fit, kind):
    module = Classifier(seeded(mlp))
    made = {"complex": torch.ones(2, dtype=torch.complex64), "sparse": torch.eye(2).to_sparse()}[kind]
    module.other = nn.Parameter(made)
    with pytest.raises(ValueError, match=f"real, dense weights, but Classifier has .*{kind}"):
        fit(module, image_batches([16]), FisherRegularizer(1.0))
    module = Classifier(seeded(mlp))
    module.other = nn.Parameter(made, requires_grad=False)
    fit(module, image_batches([16]), regularizer())


class Embeds(Classifier):
    """A table whose gradient is sparse; the class of an image is looked up by its brightest pixel."""

    def __init__(self, optimizer):
        super().__init__(nn.Embedding(36, 3, sparse=True), optimizer)

    def forward(self, x):
        return self.net(x.flatten(1).argmax(1))


def test_sparse_gradients(fit, assert_close_states):
    def plain_sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    data, module = image_batches([16] * 4), Embeds(plain_sgd)
    net = nn.Embedding(36, 3)
    net.load_state_dict(module.net.state_dict())
    dense = nn.Sequential(nn.Flatten(), OneHot(), net)
    got = fit(module, data, regularizer(), precision="64-true")
    expected = [{"weight": state["2.weight"]} for state in loop(dense, data, plain_sgd)]
    assert_close_states(got.states, expected)


class OneHot(nn.Module):
    def forward(self, x):
        return x.argmax(1)


def test_an_optimizer_of_sparse_gradients_only_is_refused_before_training(fit):
    with pytest.raises(ValueError, match=r"SparseAdam.*another optimizer"):
        fit(Embeds(lambda parameters: torch.optim.SparseAdam(list(parameters))), image_batches([16]), regularizer())


@pytest.mark.parametrize("start", [0, "first_lr_drop", "epoch:60"])
def test_batches_that_are_too_small_are_refused_at_the_first_one(fit, start):
    """Not epochs later, at the switch."""
    module = Classifier(seeded(mlp))
    with pytest.raises(ValueError, match=r"`num_sub_batches` to be at most the 1 samples of a batch"):
        fit(module, image_batches([1] * 3), FisherRegularizer(1.0, num_sub_batches=M, start=start))
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), Classifier(seeded(mlp)).parameters(), strict=True)
    )
    fit(module, image_batches([1] * 3), FisherRegularizer(0.0, num_sub_batches=M, start=start))  # does nothing


def test_one_sample_and_one_part(fit, assert_close_states, memory_logger):
    """``R = L(x, w) − L(x, w − α g)``; there is no pair whose cosine could be logged."""
    data = image_batches([1] * 3)
    callback = FisherRegularizer(BETA, num_sub_batches=1, start=0)
    got = fit(Classifier(seeded(mlp)), data, callback, precision="64-true", logger=memory_logger)
    net = seeded(mlp).double()
    opt = sgd(net.parameters())
    for batch, (x, y) in enumerate(data):
        extra = penalty(net, x, y, alpha=1e-4, num_sub_batches=1)[1]
        opt.zero_grad()
        batch_loss(net(x.double()), y).backward()
        for parameter, addend in zip(net.parameters(), extra, strict=True):
            parameter.grad += BETA * addend
        opt.step()
        assert_close_states(got.states[batch : batch + 1], [snapshot(net)])
    assert all(math.isnan(value) for value in memory_logger.series("fisher/grad_cosine").values())
    assert all(value == 0 for value in memory_logger.series("fisher/grad_norm_var").values())


def test_gradients_of_zero_change_nothing(fit, assert_identical, memory_logger):
    class Flat(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0

    plain = fit(Flat(seeded(mlp)), image_batches([16] * 2))
    got = fit(Flat(seeded(mlp)), image_batches([16] * 2), regularizer(), logger=memory_logger)
    assert_identical(got, plain)
    assert list(memory_logger.series("fisher/penalty").values()) == [0.0, 0.0]

"""What the callback says and logs about its phase, and how the weight rises in it."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import (
    Classifier,
    conv_bn_net,
    image_batches,
    mlp,
    multi_step,
    seeded,
    sgd,
)
from tests.reference.regularized_training import train

LOGGED = ("fisher/penalty", "fisher/grad_norm_var", "fisher/grad_cosine")


def test_says_once_when_it_switches_on(fit, capfd, caplog):
    """One line that holds the step, at the switch; no line in a run that never switches."""

    def lines():
        logged = [record.getMessage() for record in caplog.records]
        printed = capfd.readouterr()
        texts = {line for text in (printed.out, printed.err, *logged) for line in text.splitlines()}
        caplog.clear()
        return [line for line in texts if "regulari" in line.lower()]

    with caplog.at_level("INFO"):
        for start, expected in (("step:7", 1), ("step:1000", 0)):
            regularizer = FisherRegularizer(1.0, num_sub_batches=2, start=start)
            lines()
            fit(Classifier(seeded(mlp)), image_batches([4] * 5), regularizer, max_epochs=3)
            said = lines()
            assert len(said) == expected, said
            assert all("7" in line for line in said)


@pytest.mark.parametrize("net", [mlp, conv_bn_net])
def test_logged_values(fit, memory_logger, net):
    """R, the variance of ``||g_i||`` and the mean cosine, of every regularized step and of no other."""
    batches = image_batches([16, 16, 13])
    options = {"optimizer": sgd, "scheduler": multi_step(1), "beta": 5.0, "num_sub_batches": 4}
    expected = train(seeded(net), batches, epochs=3, **options)
    module = Classifier(seeded(net), scheduler=multi_step(1))
    regularizer = FisherRegularizer(5.0, num_sub_batches=4)
    got = fit(module, batches, regularizer, max_epochs=3, precision="64-true", logger=memory_logger)
    series = (expected.penalties, expected.norm_variances, expected.mean_cosines)
    for key, values in zip(LOGGED, series, strict=True):
        wanted = {step: value for step, value in enumerate(values) if value is not None}
        assert sorted(wanted) == [3, 4, 5, 6, 7, 8]
        assert memory_logger.series(key) == pytest.approx(wanted, rel=1e-5)
    assert set(LOGGED) <= set(got.trainer.callback_metrics)


def test_penalty_is_close_to_its_first_order(fit, memory_logger):
    """``R ~ alpha/M sum ||g_i||^2``, and positive: the oracle and the callback can't share a wrong sign."""
    net, (batch,) = seeded(mlp).double(), image_batches([16])
    squares = []
    for x, y in zip(batch[0].double().chunk(4), batch[1].chunk(4), strict=True):
        loss = nn.functional.cross_entropy(net(x), y)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        squares.append(sum(grad.square().sum().item() for grad in grads))
    regularizer = FisherRegularizer(1.0, num_sub_batches=4, start=0)
    fit(Classifier(seeded(mlp)), [batch], regularizer, precision="64-true", logger=memory_logger)
    assert memory_logger.series("fisher/penalty") == {0: pytest.approx(1e-4 * sum(squares) / 4, rel=1e-2)}


def test_nothing_is_logged_before_the_switch(fit, memory_logger):
    module = Classifier(seeded(mlp))
    got = fit(module, image_batches([4] * 3), FisherRegularizer(num_sub_batches=2), logger=memory_logger)
    assert not any(memory_logger.series(key) for key in LOGGED)
    assert not any(key.startswith("fisher/") for key in got.trainer.callback_metrics)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [8.0] * 8),
        ("linear", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
        ("cosine", [4 * (1 - math.cos(math.pi * step / 8)) for step in range(8)]),
    ],
)
def test_beta_ramp(fit, memory_logger, schedule, expected):
    """beta grows from 0 over two epochs of 4 batches, counted from the switch; without a ramp it is there at once."""
    ramp = {} if schedule == "constant" else {"beta_schedule": schedule, "ramp_epochs": 2.0}
    regularizer = FisherRegularizer(8.0, num_sub_batches=2, start=1, **ramp)
    fit(Classifier(seeded(mlp)), image_batches([4] * 4), regularizer, max_epochs=4, logger=memory_logger)
    wanted = {4 + step: beta for step, beta in enumerate(expected) if beta > 0}
    wanted |= dict.fromkeys(range(12, 16), 8.0)
    assert memory_logger.series("fisher/beta") == pytest.approx(wanted)


def test_another_callback_sees_the_state_of_the_switch(fit):
    """What a plot needs: while training, ``active`` is true from the batch of the switch on."""
    regularizer, seen = FisherRegularizer(1.0, num_sub_batches=2, start="step:3"), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            penalty = trainer.callback_metrics.get("fisher/penalty", torch.tensor(math.nan))
            seen.append((regularizer.active, bool(penalty > 0)))

    fit(Classifier(seeded(mlp)), image_batches([4] * 5), regularizer, Watch())
    assert seen == [(False, False)] * 3 + [(True, True)] * 2

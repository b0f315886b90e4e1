"""The regularized run against no callback (beta = 0, bit for bit) and a plain-torch oracle (beta = 5)."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from lightning.pytorch import callbacks as pl_callbacks

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import (
    Classifier,
    conv_bn_net,
    image_batches,
    mlp,
    multi_step,
    one_cycle,
    plateau,
    seeded,
    sgd,
)
from tests.reference.regularized_training import train

EPOCHS = 3
BATCHES = image_batches([16] * 5)  # one more than the accumulated 4

# scheduler (a function of the number of optimizer steps in the run), interval, monitored key
SCHEDULES = {
    "multistep": (lambda steps: multi_step(2), "epoch", None),
    "multistep-step": (lambda steps: multi_step(steps // 2), "step", None),
    "plateau": (lambda steps: plateau, "epoch", "one"),
    "onecycle": (one_cycle, "step", None),
    "none": (lambda steps: None, "epoch", None),
}


def optimizer_steps(accumulate):
    return EPOCHS * -(-len(BATCHES) // accumulate)


def classifier(schedule, accumulate, net=conv_bn_net, **kwargs):
    make, interval, monitor = SCHEDULES[schedule]
    return Classifier(
        seeded(net), scheduler=make(optimizer_steps(accumulate)), interval=interval, monitor=monitor, **kwargs
    )


def oracle(schedule, accumulate, net=conv_bn_net, **kwargs):
    make, interval, monitor = SCHEDULES[schedule]
    return train(
        seeded(net),
        BATCHES,
        epochs=EPOCHS,
        optimizer=kwargs.pop("optimizer", sgd),
        scheduler=make(optimizer_steps(accumulate)),
        interval=interval,
        plateau_value=1.0 if monitor else None,
        accumulate=accumulate,
        **kwargs,
    )


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_beta_is_bit_identical_to_no_callback(fit, assert_identical, schedule, accumulate, clip):
    """``1e-30`` vanishes in float32 too, but cannot be answered by leaving the machinery out."""
    options = {"max_epochs": EPOCHS, "accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    plain = fit(classifier(schedule, accumulate), BATCHES, **options)
    for beta in (0.0, 1e-30):
        regularizer = FisherRegularizer(beta, num_sub_batches=4, start=1 if schedule == "none" else "first_lr_drop")
        regularized = fit(classifier(schedule, accumulate), BATCHES, regularizer, **options)
        assert regularizer.active
        assert_identical(regularized, plain)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("schedule", "start"),
    [
        ("multistep", "first_lr_drop"),
        ("multistep-step", "first_lr_drop"),
        ("plateau", "first_lr_drop"),
        ("onecycle", "first_lr_drop"),
        ("multistep", 0),
        ("none", 0),
        ("none", 2),
    ],
)
def test_equals_the_oracle(fit, assert_close_states, schedule, start, accumulate, clip):
    """Every weight and buffer after every batch; batch-norm and the counter moved once a batch."""
    expected = oracle(schedule, accumulate, beta=5.0, start=start, clip_norm=clip)
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=start)
    got = fit(
        classifier(schedule, accumulate),
        BATCHES,
        regularizer,
        max_epochs=EPOCHS,
        precision="64-true",
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    assert expected.switch_step is not None
    assert (regularizer.switch_step, regularizer.switch_epoch) == (
        expected.switch_step,
        expected.switch_epoch,
    )
    assert [lr for (lr,) in got.lrs] == pytest.approx(expected.lrs, rel=1e-12)
    assert_close_states(got.states, expected.states)
    assert got.states[-1]["net.1.num_batches_tracked"] == EPOCHS * len(BATCHES)


def test_the_oracle_comparison_sees_the_penalty(fit, assert_close_states):
    """beta = 5 moves the weights far more than the tolerance, so the comparison above can fail."""
    plain = oracle("none", 1, beta=0.0, start=0)
    regularizer = FisherRegularizer(5.0, num_sub_batches=4, start=0)
    got = fit(classifier("none", 1), BATCHES, regularizer, max_epochs=EPOCHS, precision="64-true")
    with pytest.raises(AssertionError, match=r"off by \S+ after batch 0"):
        assert_close_states(got.states, plain.states, tolerance=1e-8)


def test_equals_the_oracle_with_adamw(fit, assert_close_states):
    adamw = functools.partial(torch.optim.AdamW, lr=1e-2)
    module = classifier("multistep", 1, net=mlp, optimizer=adamw)
    regularizer = FisherRegularizer(5.0, num_sub_batches=8)
    got = fit(module, BATCHES, regularizer, max_epochs=EPOCHS, precision="64-true")
    expected = oracle("multistep", 1, net=mlp, optimizer=adamw, beta=5.0, num_sub_batches=8)
    # AdamW divides by a second moment: 1e-12 of the gradient where that is tiny is more of the step.
    assert_close_states(got.states, expected.states, tolerance=1e-10)


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-6])
def test_alpha_is_the_length_of_the_finite_difference(fit, assert_close_states, alpha):
    expected = oracle("none", 1, beta=100.0, start=0, alpha=alpha)
    regularizer = FisherRegularizer(100.0, alpha=alpha, num_sub_batches=4, start=0)
    got = fit(classifier("none", 1), BATCHES, regularizer, max_epochs=EPOCHS, precision="64-true")
    assert_close_states(got.states, expected.states, tolerance=1e-10)


def test_before_the_drop_bit_identical_to_plain(fit):
    plain = fit(classifier("multistep", 1), BATCHES, max_epochs=EPOCHS)
    got = fit(classifier("multistep", 1), BATCHES, FisherRegularizer(1e4, num_sub_batches=4), max_epochs=EPOCHS)
    switch = 2 * len(BATCHES)  # LR drops after the second epoch
    for a, b in zip(got.states[:switch], plain.states[:switch], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(got.states[switch]["net.0.weight"], plain.states[switch]["net.0.weight"])


def test_a_second_fit(fit, assert_identical):
    """The same callback object and module can be fitted twice."""
    plain, regularized = classifier("none", 1), classifier("none", 1)
    regularizer = FisherRegularizer(0.0, num_sub_batches=4, start=0)
    for _ in range(2):
        expected = fit(plain, BATCHES, max_epochs=1)
        assert_identical(fit(regularized, BATCHES, regularizer, max_epochs=1), expected)


def neighbors(name, folder):
    """The callbacks people have beside this one, fresh for every run."""
    if name == "checkpoint":
        return pl_callbacks.ModelCheckpoint(folder, monitor="train_loss", save_top_k=2, every_n_train_steps=3)
    if name == "early_stopping":
        return pl_callbacks.EarlyStopping("train_loss_epoch", patience=1, min_delta=0.2)
    if name == "lr_monitor":
        return pl_callbacks.LearningRateMonitor()
    if name == "swa":
        return pl_callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    if not hasattr(pl_callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")
    return pl_callbacks.WeightAveraging()


NEIGHBORS = ["checkpoint", "early_stopping", "lr_monitor", "swa", "weight_averaging"]


def fit_beside(fit, name, regularizer, first, folder, memory_logger, **options):
    others = [neighbors(name, folder)]
    if regularizer is not None:
        others.insert(0 if first else 1, regularizer)
    logger = copy.deepcopy(memory_logger) if name == "lr_monitor" else False
    return fit(classifier("multistep", 1), BATCHES, *others, max_epochs=EPOCHS, logger=logger, **options)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", NEIGHBORS)
def test_beside_other_callbacks_zero_beta_changes_nothing(fit, assert_identical, name, first, tmp_path, memory_logger):
    plain = fit_beside(fit, name, None, first, tmp_path / "plain", memory_logger)
    regularizer = FisherRegularizer(1e-30, num_sub_batches=4, start=1)
    got = fit_beside(fit, name, regularizer, first, tmp_path / "regularized", memory_logger)
    assert regularizer.active
    assert_identical(got, plain)
    final, expected = (run.trainer.lightning_module.state_dict() for run in (got, plain))
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    saved = [sorted(path.name for path in (tmp_path / run).glob("*")) for run in ("plain", "regularized")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["checkpoint", "early_stopping", "lr_monitor", "weight_averaging"])
def test_beside_other_callbacks_equals_the_oracle(fit, assert_close_states, name, first, tmp_path, memory_logger):
    regularizer = FisherRegularizer(5.0, num_sub_batches=4)
    got = fit_beside(fit, name, regularizer, first, tmp_path, memory_logger, precision="64-true")
    expected = oracle("multistep", 1, beta=5.0)
    assert_close_states(got.states, expected.states[: len(got.states)])

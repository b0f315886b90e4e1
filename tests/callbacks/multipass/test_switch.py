"""When the callback switches on, and what it says and logs about it."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.optim import lr_scheduler

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import (
    Classifier,
    CountingClassifier,
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

LOGGED = ("fisher/penalty", "fisher/grad_norm_var", "fisher/grad_cosine")


def warm_up_cosine(optimizer):
    warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=20)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=80)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[20])


def lambda_lr(function):
    return functools.partial(lr_scheduler.LambdaLR, lr_lambda=function)


# scheduler stepped after every step -> the step of the switch in 100 steps, None for never
SWITCH_STEPS = {
    "multistep at 30": (multi_step(30), 30),
    "step x0.7 at 30": (functools.partial(lr_scheduler.StepLR, step_size=30, gamma=0.7), 30),
    "step x0.9 at 30": (functools.partial(lr_scheduler.StepLR, step_size=30, gamma=0.9), 30),
    "cosine": (functools.partial(lr_scheduler.CosineAnnealingLR, T_max=100), 50),
    "warm-up, cosine": (warm_up_cosine, 60),
    "one cycle": (one_cycle(100), 65),
    "constant": (None, None),
    "warm-up from zero, constant": (lambda_lr(lambda step: min(1.0, step / 20)), None),
    "exponential x0.99": (functools.partial(lr_scheduler.ExponentialLR, gamma=0.99), 69),
    "up again after the drop": (lambda_lr(lambda step: 0.1 if 30 <= step < 32 else 1.0), 30),
}


def regularized(module, switch):
    """Which batches had extra passes; those of the second one rehearse a phase that begins later."""
    flags = [len(calls) > 1 for calls in module.calls]
    if switch is None or switch > 1:
        assert flags[1]
        flags[1] = False
    return flags


@pytest.mark.parametrize("name", SWITCH_STEPS)
def test_first_lr_drop(fit, name):
    """The facts measured in Lightning: the step of the switch, and that it stays on."""
    scheduler, expected = SWITCH_STEPS[name]
    module = CountingClassifier(seeded(mlp), scheduler=scheduler, interval="step")
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(module, image_batches([4] * 100), regularizer)
    assert regularizer.switch_step == expected
    assert regularizer.switch_epoch == (None if expected is None else 0)
    assert regularizer.active is (expected is not None)
    first = 100 if expected is None else expected
    assert regularized(module, expected) == [False] * first + [True] * (100 - first)


def test_first_lr_drop_of_a_plateau_and_between_epochs(fit):
    """ReduceLROnPlateau drops after the second epoch: the first batch of the third is regularized."""
    module = CountingClassifier(seeded(mlp), scheduler=plateau, monitor="one")
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(module, image_batches([4] * 5), regularizer, max_epochs=4)
    assert (regularizer.switch_step, regularizer.switch_epoch) == (10, 2)
    assert regularized(module, 10) == [False] * 10 + [True] * 10


@pytest.mark.parametrize(("lrs", "expected"), [((0.1, 0.0), 4), ((0.0, 0.1), 4)])
def test_a_group_with_zero_lr_is_no_drop(fit, lrs, expected):
    """A frozen group's LR of 0 is not below anything; the other group's drop still counts."""

    def two_groups(parameters):
        first, *rest = parameters
        groups = [{"params": [first], "lr": lrs[0]}, {"params": rest, "lr": lrs[1]}]
        return torch.optim.SGD(groups, lr=0.1)

    module = Classifier(seeded(mlp), optimizer=two_groups, scheduler=multi_step(4), interval="step")
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(module, image_batches([4] * 6), regularizer)
    assert regularizer.switch_step == expected


@pytest.mark.parametrize(
    ("start", "accumulate", "expected"),
    [
        (0, 1, (0, 0)),
        (2, 1, (8, 2)),
        ("epoch:0", 1, (0, 0)),
        ("epoch:2", 1, (8, 2)),
        ("step:0", 1, (0, 0)),
        ("step:6", 1, (6, 1)),
        ("step:3", 2, (3, 1)),  # optimizer steps, not batches
        ("epoch:2", 2, (4, 2)),
        ("epoch:60", 1, (None, None)),
        ("step:1000", 1, (None, None)),
    ],
)
def test_explicit_start(fit, start, accumulate, expected):
    """``int`` and ``"epoch:n"`` count from epoch 0, ``"step:n"`` counts optimizer steps; LR drops don't matter."""
    module = CountingClassifier(seeded(mlp), scheduler=multi_step(1), interval="epoch")
    regularizer = FisherRegularizer(1.0, num_sub_batches=2, start=start)
    fit(module, image_batches([4] * 4), regularizer, max_epochs=3, accumulate_grad_batches=accumulate)
    assert (regularizer.switch_step, regularizer.switch_epoch) == expected
    assert regularizer.active is (expected[0] is not None)
    first = 12 if expected[0] is None else expected[0] * accumulate
    assert regularized(module, first) == [False] * first + [True] * (12 - first)


def test_attributes_before_training():
    regularizer = FisherRegularizer()
    assert regularizer.active is False
    assert regularizer.switch_step is None
    assert regularizer.switch_epoch is None


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


FULL = 0.1


class WarmsUp(Classifier):
    """A warm-up that starts from the full rate, since it is set only after, or in, the first step."""

    def __init__(self, home, rate):
        super().__init__(seeded(mlp))
        self.home, self.rate = home, rate

    def warm_up(self):
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate(self.trainer.global_step, self.trainer.current_epoch)

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        optimizer.step(closure=closure)
        if self.home == "optimizer_step":
            self.warm_up()

    def on_train_batch_end(self, *args):
        if self.home == "on_train_batch_end":
            self.warm_up()

    def on_before_optimizer_step(self, optimizer):
        if self.home == "on_before_optimizer_step":
            self.warm_up()

    def training_step(self, batch, batch_idx):
        if self.home == "training_step":
            self.warm_up()
        return super().training_step(batch, batch_idx)


HOMES = ["optimizer_step", "on_train_batch_end", "on_before_optimizer_step", "training_step"]


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("shape", ["by step", "by epoch"])
def test_a_warm_up_that_starts_from_the_full_rate_is_no_drop(fit, home, shape):
    def rate(step, epoch):
        return FULL * min(1.0, (step + 1) / 8 if shape == "by step" else (epoch + 1) / 3)

    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(WarmsUp(home, rate), image_batches([4] * 4), regularizer, max_epochs=4)
    assert regularizer.switch_step is None


@pytest.mark.parametrize("home", HOMES)
def test_a_drop_after_such_a_warm_up_counts(fit, home):
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    module = WarmsUp(home, lambda step, epoch: FULL * (0.1 if step >= 10 else min(1.0, (step + 1) / 6)))
    fit(module, image_batches([4] * 4), regularizer, max_epochs=4)
    assert regularizer.switch_step in (10, 11)  # seen once it is set


def test_a_drop_right_after_the_first_step_counts_an_epoch_later(fit):
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    module = Classifier(seeded(mlp), scheduler=multi_step(1), interval="step")
    fit(module, image_batches([4] * 4), regularizer, max_epochs=3)
    assert regularizer.switch_step == 8


def test_rates_that_are_tensors_or_none(fit):
    module = Classifier(
        seeded(mlp), lambda ps: torch.optim.Adam(ps, lr=torch.tensor(0.1), foreach=False), multi_step(1)
    )
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(module, image_batches([4] * 4), regularizer, max_epochs=2)
    assert regularizer.switch_step == 4

    class OwnRate(torch.optim.SGD):
        def step(self, closure=None):
            return closure() if closure else None

    def own_rate(parameters):
        optimizer = OwnRate(parameters, lr=0.1)
        optimizer.param_groups[0]["lr"] = None
        return optimizer

    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(Classifier(seeded(mlp), own_rate), image_batches([4] * 4), regularizer)
    assert regularizer.switch_step is None


class AdamWScheduleFree(torch.optim.SGD):
    """The name that says it."""


def test_schedule_free_optimizers_never_drop_and_that_is_said(fit, capsys):
    module = Classifier(seeded(mlp), lambda ps: AdamWScheduleFree(ps, lr=0.1))
    with pytest.warns(UserWarning, match="schedule-free optimizer has none"):
        fit(module, image_batches([4] * 2), FisherRegularizer(1.0, num_sub_batches=2))
    assert "never began" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("start", "expected"), [(0.5, 2), ("epoch:1.25", 5), ("1.5", 6), ("2", 8), (1.0, 4), ("1e0", 4)]
)
def test_fractions_of_an_epoch(fit, start, expected):
    regularizer = FisherRegularizer(1.0, num_sub_batches=2, start=start)
    fit(Classifier(seeded(mlp)), image_batches([4] * 4), regularizer, max_epochs=3)
    assert regularizer.switch_step == expected


@pytest.mark.parametrize("value", ["first_lr_drop", "60", "1.5", "epoch:60", "step:1000", "0"])
@pytest.mark.parametrize("by", ["flag", "file"])
def test_start_from_the_command_line_and_from_yaml(tmp_path, value, by):
    """`LightningCLI` gives numbers as numbers, and text as text."""
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    given = ["--trainer.callbacks+=lightning_fisher.FisherRegularizer", f"--trainer.callbacks.start={value}"]
    if by == "file":
        (tmp_path / "config.yaml").write_text(
            "trainer:\n  callbacks:\n  - class_path: lightning_fisher.FisherRegularizer\n"
            f"    init_args: {{start: '{value}', alpha: 1e-4}}\n"
        )
        given = ["--config", str(tmp_path / "config.yaml")]
    cli = LightningCLI(
        BoringModel,
        run=False,
        save_config_callback=None,
        args=[*given, "--trainer.accelerator=cpu"],
        seed_everything_default=False,
    )
    (regularizer,) = (c for c in cli.trainer.callbacks if isinstance(c, FisherRegularizer))
    number = value.partition(":")[2] or value
    assert regularizer.start.waits_for_drop is (value == "first_lr_drop")
    if not regularizer.start.waits_for_drop:
        at, by_step = float(number), value.startswith("step")
        assert not regularizer.start.reached(1e9 if by_step else at - 0.01, at - 1 if by_step else 10**9, True)
        assert regularizer.start.reached(at, at, False)

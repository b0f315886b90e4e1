"""What counts as the first drop of the learning rate."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.optim import lr_scheduler

from lightning_fisher import FisherRegularizer
from tests.callbacks.tiny import (
    Classifier,
    CountingClassifier,
    image_batches,
    mlp,
    multi_step,
    one_cycle,
    plateau,
    seeded,
)


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
    "cosine with restarts": (functools.partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=50), 25),
    "polynomial": (functools.partial(lr_scheduler.PolynomialLR, total_iters=100), 50),
    "cyclic": (functools.partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=20), 32),
    "constant": (None, None),
    "warm-up from zero, constant": (lambda_lr(lambda step: min(1.0, step / 20)), None),
    "exponential x0.99": (functools.partial(lr_scheduler.ExponentialLR, gamma=0.99), 69),
    "up again after the drop": (lambda_lr(lambda step: 0.1 if 30 <= step < 32 else 1.0), 30),
}


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
    assert module.regularized(expected) == [False] * first + [True] * (100 - first)


def test_first_lr_drop_of_a_plateau_and_between_epochs(fit):
    """ReduceLROnPlateau drops after the second epoch: the first batch of the third is regularized."""
    module = CountingClassifier(seeded(mlp), scheduler=plateau, monitor="one")
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(module, image_batches([4] * 5), regularizer, max_epochs=4)
    assert (regularizer.switch_step, regularizer.switch_epoch) == (10, 2)
    assert module.regularized(10) == [False] * 10 + [True] * 10


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


class ByHand(Classifier):
    """Manual optimization with two optimizers, whose rates are set after every batch."""

    def __init__(self, how, rate):
        super().__init__(seeded(mlp))
        self.automatic_optimization, self.how, self.rate, self.done = False, how, rate, 0

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(self.net[i].parameters(), lr=FULL) for i in (1, 3)]
        return optimizers[:1] if self.how in ("often", "accumulated") else optimizers

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        if self.how == "past Lightning":
            optimizers = self.trainer.optimizers
        chosen = {"in turns": [optimizers[batch_idx % 2 if len(optimizers) > 1 else 0]], "by epoch": optimizers[:1]}
        chosen["by epoch"] = [optimizers[self.current_epoch % len(optimizers)]]
        for optimizer in chosen.get(self.how, optimizers):
            for _ in range({"often": 4, "critic": 3}.get(self.how, 1)):
                loss = super().training_step(batch, batch_idx)
                if self.how != "accumulated" or batch_idx % 2 == 0:
                    optimizer.zero_grad()
                self.manual_backward(loss)
                if self.how != "accumulated" or batch_idx % 2:
                    optimizer.step()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.how == "accumulated" and batch_idx % 2 == 0:
            return
        self.done += 1
        for optimizer in self.trainer.optimizers:
            optimizer.param_groups[0]["lr"] = self.rate(self.done)


WAYS = ["together", "critic", "in turns", "by epoch", "often", "accumulated", "past Lightning"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.filterwarnings("ignore:.*accumulated in manual optimization")
def test_a_warm_up_after_the_first_batch_in_manual_optimization_is_no_drop(fit, how):
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    fit(ByHand(how, lambda done: FULL * min(1.0, (done + 1) / 6)), image_batches([4] * 4), regularizer, max_epochs=4)
    assert regularizer.switch_epoch is None


@pytest.mark.parametrize("how", ["together", "critic", "often", "past Lightning"])
def test_a_drop_after_such_a_warm_up_counts_in_manual_optimization(fit, how):
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    module = ByHand(how, lambda done: FULL * min(1.0, (done + 1) / 4) * (0.1 if done >= 9 else 1.0))
    fit(module, image_batches([4] * 4), regularizer, max_epochs=4)
    assert regularizer.switch_epoch == 2


class AtHome(Classifier):
    """A warm-up from the full rate in another place."""

    def __init__(self, home, rate):
        super().__init__(seeded(mlp), scheduler=lambda_lr(lambda step: 1.0), interval="step")
        self.home, self.rate = home, rate

    def set_rate(self):
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = FULL * self.rate(self.trainer.global_step)

    def lr_scheduler_step(self, scheduler, metric):
        self.set_rate()

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        def own():
            loss = closure()
            if self.home == "closure":
                self.set_rate()
            return loss

        optimizer.step(closure=own)

    def on_train_batch_start(self, batch, batch_idx):
        if self.home == "on_train_batch_start":
            self.set_rate()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("home", ["closure", "lr_scheduler_step", "on_train_batch_start"])
def test_a_warm_up_in_other_homes(fit, home, accumulate):
    for rate, epoch in (lambda step: min(1.0, (step + 1) / 6), None), (lambda step: 0.1 ** (step >= 8), 2 * accumulate):
        regularizer = FisherRegularizer(1.0, num_sub_batches=2)
        fit(AtHome(home, rate), image_batches([4] * 4), regularizer, max_epochs=6, accumulate_grad_batches=accumulate)
        assert regularizer.switch_epoch == epoch


def linear(optimizer, steps=6):
    return lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=steps)


def constant_then_steps(optimizer):
    low, steps = lr_scheduler.ConstantLR(optimizer, 0.1, 4), lr_scheduler.MultiStepLR(optimizer, [6])
    return lr_scheduler.SequentialLR(optimizer, [low, steps], [4])


CHAINS = {
    "warm-up times a slow fall": (
        lambda o: lr_scheduler.ChainedScheduler([linear(o), lr_scheduler.ExponentialLR(o, 0.995)]),
        None,
    ),
    "warm-up times steps": (
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.2, 4), lr_scheduler.StepLR(o, 10, 0.1)]),
        10,
    ),
    "warm-up, then steps": (constant_then_steps, 10),
    "one cycle of three phases": (
        lambda o: lr_scheduler.OneCycleLR(o, FULL, total_steps=40, three_phase=True, pct_start=0.4),
        21,  # six steps behind the peak: 0.0704 after 0.0787
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_schedulers_of_schedulers(fit, name):
    scheduler, expected = CHAINS[name]
    regularizer = FisherRegularizer(1.0, num_sub_batches=2)
    module = Classifier(seeded(mlp), scheduler=scheduler, interval="step")
    fit(module, image_batches([4] * 10), regularizer, max_epochs=4)
    assert regularizer.switch_step == expected

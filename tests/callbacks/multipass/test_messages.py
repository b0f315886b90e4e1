"""Whose failure it is, told by class: the module's own, or that of its step on a part of a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lightning_fisher import FisherRegularizer, SharpnessAware
from lightning_fisher.callbacks.multipass.batches.part import PartError
from lightning_fisher.exceptions import LightningFisherError
from tests.callbacks.multipass.oracle import Plain, batches, loader
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded

BATCHES = image_batches([16] * 3)


class Fails(Classifier):
    """On parts of a batch, or on everything; in the forward or in the backward pass."""

    def __init__(self, where):
        super().__init__(seeded(mlp))
        self.where = where

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        if self.where == "view":
            return F.cross_entropy(logits.view(16, -1), y)
        if self.where == "own error" and len(y) < 16:
            raise KeyError("sixteen")
        if self.where == "backward" and len(y) < 16:
            hidden = torch.sigmoid(logits)
            loss = hidden.sum()
            hidden.mul_(2)
            return loss + hidden.square().sum()
        if self.where == "everywhere":
            raise FloatingPointError("of the module's own")
        return F.cross_entropy(logits, y)


OPTIONS = [
    ({"start": 0}, {}),
    ({"start": 1}, {}),
    ({"start": 1}, {"fast_dev_run": True}),
    ({"start": 0}, {"max_steps": 1}),
]


@pytest.mark.parametrize(("options", "trainer"), OPTIONS)
@pytest.mark.parametrize("where", ["view", "own error", "backward"])
def test_a_failure_on_a_part_says_so(fit, where, options, trainer):
    with pytest.raises(PartError, match=r"runs on parts of a batch, but that of Fails fails there.*split_fn") as caught:
        fit(Fails(where), BATCHES, FisherRegularizer(num_sub_batches=4, **options), **trainer)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, LightningFisherError)
    if where == "own error":
        assert isinstance(caught.value, KeyError)  # who waits for it still gets it


@pytest.mark.parametrize(("options", "trainer"), OPTIONS)
def test_the_modules_own_failure_is_left_alone(fit, options, trainer):
    with pytest.raises(FloatingPointError, match="of the module's own") as caught:
        fit(Fails("everywhere"), BATCHES, FisherRegularizer(num_sub_batches=4, **options), **trainer)
    assert not isinstance(caught.value, LightningFisherError)


class LogsByItself(Classifier):
    """To the logger and its experiment, past `self.log`."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.logger.log_metrics({"by_itself": loss.item()}, step=batch_idx)
        self.logger.experiment.log_metrics({"deeper": loss.item()}, step=batch_idx)
        self.trainer.loggers[0].log_hyperparams({"size": len(batch[1])})
        return loss


@pytest.mark.parametrize("options", [{"start": 0}, {"start": 99}])
def test_loggers_and_their_experiments_hear_a_batch_once(fit, tmp_path, options):
    logger, calls = CSVLogger(tmp_path), []
    log = logger.experiment.log_metrics
    logger.experiment.log_metrics = lambda metrics, step=None: calls.append(set(metrics)) or log(metrics, step)
    hyperparameters = []
    logger.log_hyperparams = lambda params=None, **kwargs: hyperparameters.append(params)
    fit(LogsByItself(seeded(mlp)), BATCHES, FisherRegularizer(num_sub_batches=4, **options), logger=logger)
    for key in ("by_itself", "deeper"):
        assert sum(key in call for call in calls) == len(BATCHES)
    assert [h for h in hyperparameters if h] == [{"size": 16}] * 3


def test_they_name_the_callback_in_use(fit):
    for callback in (SharpnessAware(), FisherRegularizer()):
        with pytest.raises(ValueError, match=rf"^{type(callback).__name__} needs float32 or float64 weights"):
            fit(Classifier(seeded(mlp)), image_batches([8]), callback, precision="bf16-true")


@pytest.mark.parametrize(
    ("returned", "got"), [({"los": 1.0}, r"a mapping with \['los'\]"), ({"loss": 1.0}, "float"), (1.0, "float")]
)
@pytest.mark.parametrize("trainer", [{}, {"fast_dev_run": True}])
def test_a_step_without_a_loss_is_no_failure_of_a_part(fit, returned, got, trainer):
    class Returns(Classifier):
        def training_step(self, batch, batch_idx):
            return returned

    with pytest.raises(LightningFisherError, match=f"the key 'loss' or None, but got {got}") as caught:
        fit(Returns(seeded(mlp)), BATCHES, FisherRegularizer(num_sub_batches=4, start=0), **trainer)
    assert isinstance(caught.value, TypeError)
    assert not isinstance(caught.value, PartError)


class OwnError(Exception):
    def __init__(self, code, *, detail):
        super().__init__(f"{code}: {detail}\nmore")


class NoText(Exception):
    def __str__(self):
        return self.nothing


class NoSubclasses(Exception):
    def __init_subclass__(cls):
        raise RuntimeError("no subclasses")


ERRORS = [
    OwnError(3, detail="own"),
    NoText(),
    NoSubclasses("own"),
    UnicodeDecodeError("utf8", b"x", 0, 1, "own"),
    FileNotFoundError(2, "own", "labels.csv"),
    StopIteration("own"),  # which would end the epoch
    RuntimeError(),
]


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error, size):
        ctx.error, ctx.size = error, size
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) < ctx.size:
            raise ctx.error
        return gradient, None, None


class Raises(Plain):
    """An error on parts of a batch, or (``size`` 99) on everything."""

    def __init__(self, error, late=False, manual=False, size=16):
        super().__init__()
        self.error, self.late, self.automatic_optimization, self.size = error, late, not manual, size

    def training_step(self, batch, batch_idx):
        x, y = batch
        if len(y) < self.size and not self.late:
            raise self.error
        logits = FailsInBackward.apply(self.net(x), self.error, self.size if self.late else 0)
        if self.automatic_optimization:
            return F.cross_entropy(logits, y)
        self.optimizers().zero_grad()
        self.manual_backward(F.cross_entropy(logits, y))
        self.optimizers().step()
        return None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("options", "trainer"), OPTIONS[1:3])
def test_an_error_of_any_class_on_a_part(fit, error, options, trainer):
    with pytest.raises(PartError, match=r"^FisherRegularizer needs .* on parts of a batch, but that of Raises fails"):
        fit(Raises(error), batches(), FisherRegularizer(num_sub_batches=4, **options), **trainer)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("error", [ArithmeticError("own"), ValueError("own"), OwnError(3, detail="own")])
def test_an_error_in_the_backward_pass(fit, error, manual):
    """On a part; and the module's own, on the whole batch too."""
    for start in (0, 99):
        with pytest.raises(PartError, match="own"):
            fit(Raises(error, True, manual), batches(), FisherRegularizer(num_sub_batches=4, start=start))
    with pytest.raises(type(error), match="own") as caught:
        fit(Raises(error, True, manual, 99), batches(), FisherRegularizer(num_sub_batches=4, start=0))
    assert not isinstance(caught.value, PartError)


def test_a_loss_of_several_numbers_is_the_modules_own_failure(fit):
    class Several(Plain):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    with pytest.raises(RuntimeError, match="only for scalar outputs") as caught:
        fit(Several(), batches(), FisherRegularizer(num_sub_batches=4, start=0))
    assert not isinstance(caught.value, PartError)


def test_parts_without_a_gradient(fit):
    class Detaches(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if len(batch[1]) == 16 else loss.detach()

    with pytest.raises(PartError, match="none of them gets a gradient"):
        fit(Detaches(), batches(), FisherRegularizer(num_sub_batches=4, start=0))


def test_parts_that_are_skipped(fit):
    class Skips(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if len(batch[1]) == 16 else None

    with pytest.warns(UserWarning, match="Skips skips a part of a batch, but not the batch"):
        fit(Skips(), batches(), FisherRegularizer(num_sub_batches=4, start=0))


class Views(Plain):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0].view(16, -1)), batch[1])


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader()


@pytest.mark.parametrize("more", [["--trainer.callbacks.start=0"], ["--trainer.fast_dev_run=true"]])
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_a_failure_on_a_part_by_the_command_line(more, tmp_path):
    arguments = "fit --trainer.accelerator=cpu --trainer.logger=false --trainer.enable_checkpointing=false"
    callback = "--trainer.callbacks+=lightning_fisher.FisherRegularizer --trainer.callbacks.num_sub_batches=4"
    with pytest.raises(PartError, match="that of Views fails there"):
        LightningCLI(Views, Data, args=[*arguments.split(), *callback.split(), *more], save_config_callback=None)

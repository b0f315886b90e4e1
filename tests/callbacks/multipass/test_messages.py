"""Whose failure it is, told by class: the module's own, or that of its step on a part of a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger

from lightning_fisher import FisherRegularizer, SharpnessAware
from lightning_fisher.callbacks.multipass.batches.part import PartError
from lightning_fisher.exceptions import LightningFisherError
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

"""FisherMonitor on a network that is no longer finite: nan is logged, and what watches the value copes with it."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import TensorDataset

from lightning_fisher import FisherMetric, FisherMonitor
from lightning_fisher.functional import NonFiniteError
from tests.callbacks.tiny import Classifier, image_batches, mlp, seeded

BATCHES = image_batches([8] * 4)
DATA = TensorDataset(*image_batches([40], seed=5)[0])


class Diverges(Callback):
    """The weights are nan while epoch ``at`` is measured and checkpoints are written."""

    def __init__(self, *at):
        self.at = at

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch in self.at:
            self.kept = pl_module.net[1].weight.detach().clone()
            with torch.no_grad():
                pl_module.net[1].weight[0, 0] = math.nan

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch - 1 in self.at:
            with torch.no_grad():
                pl_module.net[1].weight.copy_(self.kept)


def monitor(**options):
    return FisherMonitor(DATA, num_subsets=2, subset_size=6, **options)


def run(fit, *callbacks, at=(1,), epochs=3, **options):
    with pytest.warns(UserWarning, match=r"infinite or undefined.*FisherMetric counts the subset as nan"):
        return fit(Classifier(seeded(mlp)), BATCHES, Diverges(*at), monitor(), *callbacks, max_epochs=epochs, **options)


def test_training_goes_on_and_the_curve_shows_it(fit, memory_logger):
    got = run(fit, logger=memory_logger)
    assert [math.isnan(value) for value in memory_logger.series("gamma").values()] == [False, True, False]
    assert got.trainer.current_epoch == 3


@pytest.mark.parametrize("at", [(0,), (1,), (2,), (0, 1)], ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_nan_is_never_the_best(fit, tmp_path, at, mode):
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="gamma", mode=mode, save_top_k=1)
    run(fit, best, at=at)
    kept = torch.load(best.best_model_path, weights_only=True)
    assert kept["epoch"] not in at
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert math.isfinite(best.best_model_score)


def test_until_something_better_comes_it_is_all_there_is(fit, tmp_path):
    """Lightning ranks a nan as the worst value, and keeps it only while there are fewer than `save_top_k` others."""
    best = ModelCheckpoint(tmp_path, monitor="gamma", mode="min", save_top_k=1)
    run(fit, best, at=(0,), epochs=1)
    assert best.best_model_score == math.inf


def test_early_stopping_stops(fit):
    got = run(fit, EarlyStopping("gamma", patience=100, check_finite=True), epochs=9)
    assert got.trainer.current_epoch == 2


def test_the_strict_policy_raises(fit):
    strict = monitor(metrics=FisherMetric(rank_policy="error"))
    with pytest.raises(NonFiniteError, match=r"per-sample|outputs"):
        fit(Classifier(seeded(mlp)), BATCHES, Diverges(0), strict)

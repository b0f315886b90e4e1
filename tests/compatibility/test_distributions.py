"""The same code in two distributions: callbacks of one package in the Trainer of either."""

from __future__ import annotations

import lightning.pytorch
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from lightning_fisher import FisherMonitor, FisherRegularizer
from tests.callbacks.tiny import image_batches, mlp, multi_step, seeded, sgd
from tests.compatibility.runs import Lines, loader
from tests.reference.regularized_training import snapshot, train

other = pytest.importorskip("pytorch_lightning")
PACKAGES = {"lightning": lightning.pytorch, "pytorch_lightning": other}
BATCHES = image_batches([10] * 3)
IMAGES, LABELS = image_batches([20], seed=5)[0]


def module_of(package, automatic=True):
    class Classifier(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = seeded(mlp)
            self.automatic_optimization = automatic

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = sgd(self.parameters())
            return [optimizer], [multi_step(1)(optimizer)]

    return Classifier()


def fit(package, module, *callbacks, **options):
    lines = Lines() if package is lightning.pytorch else False
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": lines,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "max_epochs": 2,
    }
    trainer = package.Trainer(**quiet | options, callbacks=list(callbacks))
    trainer.fit(module, loader(BATCHES))
    return trainer


@pytest.mark.parametrize("name", PACKAGES)
def test_both_callbacks_work_in_either(name):
    """The regularizer equals the oracle, the monitor measures, all are logged."""
    package = PACKAGES[name]
    module, regularizer = module_of(package), FisherRegularizer(5.0, num_sub_batches=4)
    monitor = FisherMonitor(TensorDataset(IMAGES.double(), LABELS), num_subsets=2, subset_size=6)
    trainer = fit(package, module, regularizer, monitor, precision="64-true")
    expected = train(seeded(mlp), BATCHES, epochs=2, beta=5.0, optimizer=sgd, scheduler=multi_step(1))
    assert (regularizer.switch_step, regularizer.switch_epoch) == (3, 1)
    for key, want in expected.states[-1].items():
        assert torch.allclose(snapshot(module)[f"net.{key}"], want, rtol=0, atol=1e-13)
    assert {"train_loss", "fisher/penalty", "gamma"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["fisher/penalty"].item() == pytest.approx(expected.penalties[-1], rel=1e-6)


@pytest.mark.parametrize("name", PACKAGES)
def test_zero_beta_changes_nothing_in_either(name):
    package = PACKAGES[name]
    plain, module = module_of(package), module_of(package)
    fit(package, plain)
    fit(package, module, FisherRegularizer(1e-30, num_sub_batches=4, start=0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(("automatic", "precision", "match"), [(False, "32-true", "in manual optimization"),
                                                              (True, "bf16-true", 'use "32-true"')])  # fmt: skip
def test_refusals_are_the_same_in_either(name, automatic, precision, match):
    callback = FisherRegularizer(gradient="full" if automatic else "shared")
    with pytest.raises(ValueError, match=match):
        fit(PACKAGES[name], module_of(PACKAGES[name], automatic), callback, precision=precision)


@pytest.mark.parametrize(
    ("trainer", "module"), [("lightning", "pytorch_lightning"), ("pytorch_lightning", "lightning")]
)
def test_lightning_itself_refuses_the_others_modules(trainer, module):
    """In one line, with or without us."""
    for callbacks in ([], [FisherRegularizer()]):
        with pytest.raises(TypeError, match="`model` must be a `LightningModule`"):
            fit(PACKAGES[trainer], module_of(PACKAGES[module]), *callbacks)

"""A step that ends in NaN ends the run, before it reaches the last or the best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.checkpoints import checkpoint_callbacks
from lightning_fisher.experiment.records.run_folders import CHECKPOINTS
from lightning_fisher.experiment.training.finite_loss import FiniteLoss
from lightning_fisher.experiment.training.history import History

DATA = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)


class Net(LightningModule):
    """Logs like the image classifier; ``val_error`` is a number whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_error", 100 * (logits.argmax(1) != batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class At(Callback):
    """Does something to the module at the end of a batch of an epoch."""

    def __init__(self, epoch: int, batch: int, action: Callable[[Net], None]) -> None:
        self.when, self.action = (epoch, batch), action

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == self.when:
            with torch.no_grad():
                self.action(pl_module)  # type: ignore[arg-type]


def nan_weight(module: Net) -> None:
    module.net[0].weight[0, 0] = math.nan  # type: ignore[index]


def infinite_statistics(module: Net) -> None:
    module.net[1].running_mean[0] = math.inf  # type: ignore[index,union-attr]


def fit(folder: Path, *callbacks: Callback, validation: bool = True) -> None:
    own = [FiniteLoss(), *callbacks, *checkpoint_callbacks(folder, has_validation=validation)]
    trainer = Trainer(
        max_epochs=3,
        callbacks=own,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = DataLoader(DATA, 12)
    trainer.fit(Net(), loader, loader if validation else None)


CASES = {
    "first step": (0, 0, nan_weight, "the loss was"),
    "last step of the first epoch": (0, 1, nan_weight, "a weight was"),
    "first step of the third epoch": (2, 0, nan_weight, "the loss was"),
    "last step of the third epoch": (2, 1, nan_weight, "a weight was"),
    "running statistics": (1, 1, infinite_statistics, "the validation loss was"),
}


@pytest.mark.parametrize(("epoch", "batch", "action", "what"), CASES.values(), ids=CASES)
def test_no_checkpoint_holds_a_nan(
    tmp_path: Path, epoch: int, batch: int, action: Callable[[Net], None], what: str
) -> None:
    with pytest.raises(ConfigError, match=rf"diverged: {what} not finite in epoch {epoch + 1} \(learning rate 0.1\)"):
        fit(tmp_path, At(epoch, batch, action))
    names = {path.name for path in (tmp_path / CHECKPOINTS).glob("*")}
    assert names >= {"last.ckpt", "best.ckpt"} if epoch else not names
    for name in names:
        kept = torch.load(tmp_path / CHECKPOINTS / name, weights_only=True)
        assert kept["epoch"] < epoch
        assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


def test_the_same_without_validation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a weight was not finite in epoch 2"):
        fit(tmp_path, At(1, 1, nan_weight), validation=False)
    assert torch.load(tmp_path / CHECKPOINTS / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_finite_run_is_left_alone(tmp_path: Path) -> None:
    fit(tmp_path)
    assert torch.load(tmp_path / CHECKPOINTS / "last.ckpt", weights_only=True)["epoch"] == 2


def test_a_penalty_that_was_left_out_does_not_hide_the_others(tmp_path: Path) -> None:
    """The epoch's mean in the curve is over the steps that have one."""

    class Regularizer:
        active = True

    class Logs(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            nothing = trainer.current_epoch == 1 or args[-1] == 0
            pl_module.log("fisher/penalty", torch.tensor(math.nan if nothing else 3.0))

    history = History(tmp_path, Regularizer())
    fit(tmp_path, Logs(), history)
    penalties = [record["fisher/penalty"] for record in history.records]
    assert penalties[0] == penalties[2] == 3.0
    assert math.isnan(penalties[1])

"""Resumed equals uninterrupted, for a network that draws random numbers in every step."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fisher.callbacks.plateau_step import PlateauStep
from lightning_fisher.callbacks.random_state import RandomState, get_random_state, set_random_state

EPOCHS, SAVED_AFTER = 6, 3


class Dropping(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        noise = random.gauss(0, 0.1) + float(np.random.normal(0, 0.1))
        loss = (self.net(inputs + noise) - targets).square().mean()
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", (self.net(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


class Save(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 == SAVED_AFTER:
            trainer.save_checkpoint(self.path)


def fit(callbacks: list[Callback], checkpoint: Path | None, validate: bool) -> Dropping:
    seed_everything(0 if checkpoint is None else 1, verbose=False)
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
    module = Dropping()
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    loaders = [DataLoader(data, 8, shuffle=True)] + ([DataLoader(data, 8)] if validate else [])
    if checkpoint is not None:
        torch.load(checkpoint, weights_only=True)  # plain types only
    trainer.fit(module, *loaders, ckpt_path=checkpoint)
    return module


@pytest.mark.parametrize("validate", [True, False])
def test_resumed_equals_uninterrupted(validate: bool, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    whole = fit([RandomState(), PlateauStep(), Save(path)], None, validate)
    resumed = fit([RandomState(), PlateauStep()], path, validate)
    assert min(whole.rates) < max(whole.rates)  # the scheduler did something
    assert resumed.rates == whole.rates[SAVED_AFTER * 3 :]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_it_a_resumed_run_differs(tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    whole = fit([Save(path)], None, validate=False)
    resumed = fit([PlateauStep()], path, validate=False)
    assert not torch.equal(next(whole.parameters()), next(resumed.parameters()))


def test_state_round_trip_in_plain_types(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(2).tolist()]

    draw()
    torch.save(get_random_state(), tmp_path / "state.pt")
    first = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first


def test_states_of_another_number_of_processes_are_not_used() -> None:
    class TwoProcesses:
        world_size, global_rank = 2, 1

    callback = RandomState()
    checkpoint = {"lightning_fisher.random_state": [get_random_state()]}
    callback.on_load_checkpoint(TwoProcesses(), None, checkpoint)  # type: ignore[arg-type]
    before = torch.get_rng_state()
    callback.on_fit_start(TwoProcesses(), None)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())

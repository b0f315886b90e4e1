"""The runs that a case is judged by: without the callback, with it, and the plain-torch oracle."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_fisher import FisherRegularizer
from tests.callbacks.conftest import Recorder
from tests.compatibility.case import BATCH, EPOCHS, PARTS, SAMPLES, Case, precision
from tests.reference.regularized_training import Trace, train

SEED = 3  # of the dropout masks


class Lines(Logger):
    """Every value it was given, in order, none overwritten."""

    name = "lines"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, str, float]] = []

    def log_hyperparams(self, params: Any, *args: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines += [(step, key, value) for key, value in metrics.items() if key != "epoch"]

    def split(self) -> tuple[list[Any], list[Any]]:
        """The module's own lines and ours."""
        ours = [line for line in self.lines if line[1].startswith(("fisher/", "gamma"))]
        return [line for line in self.lines if line not in ours], ours


@dataclass
class Run:
    """A finished fit."""

    module: LightningModule
    recorder: Recorder
    lines: Lines
    trainer: Trainer
    files: list[str] = field(default_factory=list)


def loader(batches: list[Any]) -> DataLoader:
    """These very batches, in order; iterating draws nothing from the global random state."""
    return DataLoader(batches, batch_size=None, collate_fn=_same, generator=torch.Generator().manual_seed(0))


def _same(batch: Any) -> Any:
    return batch


def regularizer(case: Case, beta: float) -> FisherRegularizer:
    return FisherRegularizer(beta, **{"num_sub_batches": PARTS, "start": 1} | dict(case.regularizer))


def fit(case: Case, *callbacks: Any, dtype: torch.dtype = torch.float32, module: Any = None) -> Run:
    """Train the case's module with its own callbacks and the given ones."""
    built, samples = case.build(dtype)
    module = built if module is None else module
    recorder, lines = Recorder(), Lines()
    with tempfile.TemporaryDirectory() as folder:
        own = case.callbacks(Path(folder))
        options = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": lines,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in own),
            "default_root_dir": folder,
            "log_every_n_steps": 1,
            "max_epochs": EPOCHS,
            "precision": "64-true" if dtype == torch.float64 else "32-true",
        }
        trainer = Trainer(**options | dict(case.trainer), callbacks=[*own, *callbacks, recorder])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            trainer.fit(module, loader(case.batches(samples)))
        files = sorted(path.name for path in Path(folder).rglob("*") if path.is_file())
    return Run(trainer.lightning_module, recorder, lines, trainer, files)


class MeanLoss(nn.Module):
    """``indices of samples → their mean loss``: the shape of everybody's model that the reference can train."""

    def __init__(self, net: LightningModule, samples: list[Any], case: Case) -> None:
        super().__init__()
        self.net, self.samples, self.case = net, samples, case

    def forward(self, indices: Tensor) -> Tensor:
        return self.case.loss(self.net, self.case.collate([self.samples[i] for i in indices.tolist()]))


def oracle(case: Case, beta: float) -> Trace:
    """The same training by the reference: float64, plain torch, no code of the package."""
    net, samples = case.build(torch.float64)
    optimizer, schedule = configured(net)
    how = {
        "scheduler": schedule and (lambda optimizer: schedule["scheduler"]),
        "interval": schedule["interval"] if schedule else "epoch",
        "start": case.regularizer.get("start", 1),
    }
    with precision(torch.float64), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return train(
            MeanLoss(net, samples, case),
            [(indices, indices) for indices in torch.arange(SAMPLES).split(BATCH)],
            epochs=EPOCHS,
            beta=beta,
            optimizer=lambda parameters: optimizer,
            num_sub_batches=PARTS,
            loss_fn=lambda loss, indices: loss,
            **how | dict(case.oracle),
        )


def configured(module: LightningModule) -> tuple[torch.optim.Optimizer, dict[str, Any] | None]:
    """What `configure_optimizers` gives: the optimizer, and the scheduler with its interval if there is one."""
    given = module.configure_optimizers()
    if isinstance(given, torch.optim.Optimizer):
        return given, None
    if isinstance(given, dict):
        optimizer, schedule = given["optimizer"], given.get("lr_scheduler")
    else:
        (optimizer,), schedules = given
        schedule = schedules[0] if schedules else None
    if not schedule:
        return optimizer, None
    config = schedule if isinstance(schedule, dict) else {"scheduler": schedule}
    return optimizer, {"interval": "epoch"} | config

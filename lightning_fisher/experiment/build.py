"""From the config to objects: data, network, callbacks, loggers, trainer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.callbacks import FisherMonitor, FisherRegularizer
from lightning_fisher.callbacks.convergence import StopAtConvergence
from lightning_fisher.callbacks.plateau_step import PlateauStep
from lightning_fisher.callbacks.random_state import RandomState
from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.experiment.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from lightning_fisher.experiment.finite_loss import FiniteLoss
from lightning_fisher.experiment.history import History
from lightning_fisher.experiment.loggers import make_loggers
from lightning_fisher.experiment.measure import FinalMeasurement, make_monitor
from lightning_fisher.experiment.progress import Progress
from lightning_fisher.module import ImageClassifier


@dataclass
class Run:
    """Everything one run is made of; an optional part is None where the config has none."""

    datamodule: ImageDataModule
    module: ImageClassifier
    trainer: Trainer
    loggers: list[Logger]
    history: History
    regularizer: FisherRegularizer | None
    monitor: FisherMonitor | None
    stop: StopAtConvergence | None
    measurement: FinalMeasurement | None


def make_module(model: DictConfig) -> ImageClassifier:
    """Instantiate the classifier of a ``model`` node."""
    return ImageClassifier(
        instantiate(model.net),
        instantiate(model.optimizer),
        instantiate(model.scheduler),
        scheduler_interval=model.scheduler_interval,
        scheduler_monitor=model.scheduler_monitor,
        label_smoothing=model.label_smoothing,
    )


def make_trainer(node: DictConfig, callbacks: list[Callback], loggers: list[Logger], folder: Path) -> Trainer:
    """Instantiate the trainer of a ``trainer`` node."""
    options = {"enable_progress_bar": sys.stdout.isatty()} if node.enable_progress_bar is None else {}
    if node.strategy == "auto" and node.devices not in (1, "1"):
        options["strategy"] = "ddp"  # `auto` may pick a strategy that the regulariser does not support
    return instantiate(
        node,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(folder),
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=True,
        **options,
    )


def build(cfg: DictConfig, folder: Path, study: str | None, config_hash: str) -> Run:
    """Instantiate a run; nothing is written yet.

    Args:
        cfg: the composed, checked config.
        folder: the run folder.
        study: name of the study the run belongs to.
        config_hash: identifies the run to loggers.

    Raises:
        InstantiationException: if a constructor refuses its arguments.
    """
    datamodule = instantiate(cfg.data)
    module = make_module(cfg.model)
    regularizer = instantiate(cfg.reg) if OmegaConf.select(cfg, "reg._target_") else None
    stop = instantiate(cfg.stop) if cfg.stop is not None else None
    every = cfg.metric.every_n_validations
    monitor = make_monitor(cfg.metric, "gamma", every) if every is not None else None
    at_end = cfg.metric.at_end
    measurement = FinalMeasurement(make_monitor(cfg.metric, at_end)) if at_end != "none" else None
    history = History(folder, regularizer, monitor)
    callbacks: list[Callback | None] = [RandomState(), PlateauStep(), FiniteLoss(), regularizer, monitor]
    callbacks += [measurement, history, Progress(history), stop]
    callbacks += checkpoint_callbacks(folder, has_validation=cfg.data.validation_size > 0)
    loggers = make_loggers(cfg.logger, folder, study, config_hash)
    trainer = make_trainer(cfg.trainer, [c for c in callbacks if c is not None], loggers, folder)
    return Run(datamodule, module, trainer, loggers, history, regularizer, monitor, stop, measurement)

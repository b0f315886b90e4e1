"""From the config to objects: data, network, callbacks, loggers, trainer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lightning_fisher.callbacks import FisherMonitor
from lightning_fisher.callbacks.convergence import StopAtConvergence
from lightning_fisher.callbacks.plateau_step import PlateauStep
from lightning_fisher.callbacks.random_state import RandomState
from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import name_option
from lightning_fisher.experiment.methods import AveragedWeights
from lightning_fisher.experiment.records.checkpoints import RunCheckpointIO, checkpoint_callbacks
from lightning_fisher.experiment.training.final_metrics import FinalMeasurement, make_monitor
from lightning_fisher.experiment.training.finite_loss import FiniteLoss
from lightning_fisher.experiment.training.history import History
from lightning_fisher.experiment.training.loggers import make_loggers
from lightning_fisher.experiment.training.process_watch import Ranks
from lightning_fisher.experiment.training.progress import Progress
from lightning_fisher.module import ImageClassifier

Made = TypeVar("Made")


@dataclass
class Run:
    """Everything one run is made of; an optional part is None where the config has none."""

    datamodule: ImageDataModule
    module: ImageClassifier
    trainer: Trainer
    loggers: list[Logger]
    history: History
    regularizer: Callback | None
    monitor: FisherMonitor | None
    stop: StopAtConvergence | None
    measurement: FinalMeasurement | None
    ranks: Ranks
    own: dict[str, Callback]  # the user's callbacks, by name


def made(key: str, node: DictConfig, kind: type[Made], **options: Any) -> Made:
    """Instantiate a node, with further arguments.

    Raises:
        InstantiationException: if the constructor refuses its arguments.
        ConfigError: if the target makes something else than a ``kind``.
    """
    found = instantiate(node, **options)
    if not isinstance(found, kind):
        raise ConfigError(
            f"Expected option `{key}._target_` to make a {kind.__module__}.{kind.__qualname__}, "
            f"but got a {type(found).__name__}."
        )
    return found


def make_module(model: DictConfig) -> ImageClassifier:
    """Instantiate the classifier of a ``model`` node.

    Raises:
        ConfigError: in one line.
    """
    return ImageClassifier(
        made("model.net", model.net, nn.Module),
        _factory("model.optimizer", model.optimizer),
        _factory("model.scheduler", model.scheduler) if model.scheduler is not None else None,
        scheduler_interval=model.scheduler_interval,
        scheduler_monitor=model.scheduler_monitor,
        label_smoothing=model.label_smoothing,
        channels_last=model.get("channels_last", False),
        compile=model.get("compile", False),
        manual_optimization=model.get("manual_optimization", False),
    )


def _factory(key: str, node: DictConfig) -> Any:
    """A constructor whose last argument, the parameters or the optimizer, is given later."""
    found = instantiate(node)
    if not callable(found):
        raise ConfigError(f"Expected option `{key}._partial_` to be true: its `_target_` is called later.")
    return found


def make_callbacks(node: DictConfig | None) -> dict[str, Callback]:
    """Instantiate the callbacks of a ``callbacks`` node by name: the user's, beside those of the program.

    Raises:
        InstantiationException: if a constructor refuses its arguments.
        ConfigError: if a target makes no callback.
    """
    return {str(name): made("callbacks." + str(name), item, Callback) for name, item in (node or {}).items()}


def make_trainer(node: DictConfig, callbacks: list[Callback], loggers: list[Logger], folder: Path) -> Trainer:
    """Instantiate the trainer of a ``trainer`` node."""
    options: dict[str, Any] = {}
    if node.enable_progress_bar is None:
        options["enable_progress_bar"] = False  # `Progress` has a bar of its own
    if node.strategy == "auto" and node.devices not in (1, "1"):
        options["strategy"] = "ddp"  # `auto` may pick a strategy that the regularizer does not support
    try:
        return made(
            "trainer",
            node,
            Trainer,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=str(folder),
            plugins=[RunCheckpointIO()],
            use_distributed_sampler=True,
            **options,
        )
    except InstantiationException as error:
        raise ConfigError(refused_by_trainer(node, error.__cause__ or error)) from error


def refused_by_trainer(node: DictConfig, error: BaseException) -> str:
    """What the trainer says of an option, as one line about the option.

    Args:
        node: the ``trainer`` node.
        error: what its constructor raised; the option is the first that the message names.
    """
    message = name_option("trainer", error)
    names = "|".join(sorted(map(str, node), key=len, reverse=True))
    first = re.search(rf"\b({names})\b", message.removeprefix("trainer: "), re.IGNORECASE)
    if not message.startswith("trainer: ") or first is None:
        return message
    key = first[1].lower()
    text = message.removeprefix("trainer: ")
    return f"Expected option `trainer.{key}` to be one that Lightning takes, but got `{node[key]}`: {text}"


def build(cfg: DictConfig, folder: Path, study: str | None, config_hash: str) -> Run:
    """Instantiate a run; nothing is written yet.

    Args:
        cfg: the composed, checked config.
        folder: the run folder.
        study: name of the study the run belongs to.
        config_hash: identifies the run to loggers.

    Raises:
        InstantiationException: if a constructor refuses its arguments.
        ConfigError: if a target makes something else than what is needed.
    """
    datamodule = made("data", cfg.data, ImageDataModule)
    module = make_module(cfg.model)
    regularizer = made("reg", cfg.reg, Callback) if OmegaConf.select(cfg, "reg._target_") else None
    stop = made("stop", cfg.stop, StopAtConvergence) if cfg.stop is not None else None
    every = cfg.metric.every_n_validations
    monitor = make_monitor(cfg.metric, "curve", every) if every is not None else None
    at_end = cfg.metric.at_end
    initial = {name: value.clone() for name, value in module.net.state_dict().items()} if cfg.metric.measures else None
    final = make_monitor(cfg.metric, at_end, initial=initial)
    measurement = FinalMeasurement(final) if at_end != "none" else None
    history = History(folder, regularizer, monitor)
    ranks = Ranks()
    callbacks: list[Callback | None] = [ranks, RandomState(), PlateauStep(), FiniteLoss()]
    # An average of the weights is to be there while they are measured.
    callbacks += [monitor, regularizer] if isinstance(regularizer, AveragedWeights) else [regularizer, monitor]
    callbacks += [measurement, history, Progress(history, bar=cfg.trainer.enable_progress_bar is None), stop]
    own = make_callbacks(cfg.get("callbacks"))
    callbacks += own.values()
    callbacks += checkpoint_callbacks(folder, has_validation=cfg.data.validation_size > 0)
    loggers = make_loggers(cfg.get("logger") or OmegaConf.create({}), folder, study, config_hash)
    trainer = make_trainer(cfg.trainer, [c for c in callbacks if c is not None], loggers, folder)
    return Run(datamodule, module, trainer, loggers, history, regularizer, monitor, stop, measurement, ranks, own)

"""Try, before anything is written, what would otherwise fail after the folder was begun."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_fisher.callbacks.convergence import StopAtConvergence
from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.compose import config_groups
from lightning_fisher.experiment.config.error_messages import listing, name_option, one_line
from lightning_fisher.experiment.config.validation import check_data, check_epoch
from lightning_fisher.experiment.methods import AveragedWeights
from lightning_fisher.experiment.training.build import Run, made, make_callbacks, make_module
from lightning_fisher.experiment.training.final_metrics import make_metrics
from lightning_fisher.functional.evaluation.state.buffers import preserved_buffers
from lightning_fisher.functional.evaluation.state.random_state import preserved_random_state
from lightning_fisher.module import ImageClassifier

# What libraries raise for arguments that do not fit.
UNFIT = (ValueError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError, ZeroDivisionError)


def load_data(data: ImageDataModule, cfg: DictConfig) -> None:
    """Load the data set, so that what is missing or does not fit is said before anything is written.

    Raises:
        ConfigError: in one line.
    """
    try:
        data.prepare_data()
        data.setup("fit")
    except (OSError, ImportError, *UNFIT) as error:
        raise ConfigError(name_option("data", error)) from error
    check_data(cfg, len(data.clean_set))


def load_training_data(run: Run, cfg: DictConfig) -> None:
    """Load the data set of a run, which has to fill its batches too.

    Raises:
        ConfigError: in one line.
    """
    data = run.datamodule
    load_data(data, cfg)
    sizes = {"train": len(data.train_set), "val": len(data.validation_set), "test": len(data.test_set)}
    check_epoch(cfg, sizes, run.trainer.world_size)


def check_run(run: Run) -> None:
    """Try what would otherwise fail after the folder was begun: optimizer, network, and what the regularizer supports.

    Raises:
        ConfigError: in one line.
    """
    scheduler = check_optimizer(run.module)
    if run.module.compile_steps:
        check_compiler(run.trainer.strategy.root_device)
    check_network(run.module, run.datamodule, getattr(run.regularizer, "num_sub_batches", 1) // run.trainer.world_size)
    _check_monitors(run, scheduler)
    if run.regularizer is not None and not isinstance(run.regularizer, AveragedWeights):
        try:
            run.regularizer.setup(run.trainer, run.module, "fit")
        except ValueError as error:
            raise ConfigError(name_option("reg", error)) from error


def check_compiler(device: torch.device) -> None:
    """Compile something small: on a CPU that takes a C++ compiler, on a GPU Triton.

    Args:
        device: that of the training.

    Raises:
        ConfigError: in one line, what `torch.compile` misses.
    """
    try:
        torch.compile(torch.sin)(torch.zeros(3, device=device))
    except RuntimeError as error:
        why = one_line(error).split("; Set TORCHDYNAMO")[0]  # its hints for developers
        raise ConfigError(f"Expected option `model.compile` to be false where torch.compile fails: {why}") from error


def check_network(module: ImageClassifier, data: ImageDataModule, parts: int) -> None:
    """Give the network images of zeros, in evaluation and in training mode.

    Args:
        module: with the network.
        data: which images it gets; nothing is loaded.
        parts: sub-batches that a batch of one process is split into.

    Raises:
        ConfigError: in one line.
    """
    height, width = (data.image_size, data.image_size) if isinstance(data.image_size, int) else data.image_size
    smallest = 1 if data.batch_size < 2 * parts else min(data.batch_size, 2)  # what batch-norm refuses
    try:
        with (
            torch.no_grad(),
            preserved_buffers(module.net),
            preserved_random_state([]),
            module.eagerly(),  # a graph for two images would serve no step
        ):
            logits = module.net.eval()(torch.zeros(2, data.channels, height, width))
            module.net.train()(torch.zeros(smallest, data.channels, height, width))
    except UNFIT as error:
        raise ConfigError(name_option("model.net", error)) from error
    if getattr(logits, "shape", None) != (2, data.num_classes):
        raise ConfigError(
            f"Expected option `model.net` to be a network with data.num_classes={data.num_classes} outputs, "
            f"but got one with outputs of shape {list(getattr(logits, 'shape', []))} for 2 images."
        )
    module.train()


SEEDS = ("seed", "validation_seed")


def check_parts(cfg: DictConfig, known: set[str]) -> None:
    """Make the parts of a run that need no device, and check them; what was made before, or differs in seeds, is not.

    Args:
        cfg: the composed, checked config of a job of a sweep.
        known: what was made for the jobs before it; extended.

    Raises:
        InstantiationException: if a constructor refuses its arguments.
        ConfigError: in one line.
    """

    def new(name: str, *values: Any) -> bool:
        plain = [OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for v in values]
        plain = [{k: v for k, v in p.items() if k not in SEEDS} if isinstance(p, dict) else p for p in plain]
        key = f"{name} {json.dumps(plain, sort_keys=True, default=str)}"
        known_before = key in known
        known.add(key)
        return not known_before

    if new("data", cfg.data):
        made("data", cfg.data, ImageDataModule)
    regularized = OmegaConf.select(cfg, "reg._target_") is not None
    if regularized and new("reg", cfg.reg):
        made("reg", cfg.reg, Callback)
    if cfg.stop is not None and new("stop", cfg.stop):
        made("stop", cfg.stop, StopAtConvergence)
    if new("callbacks", cfg.get("callbacks")):
        make_callbacks(cfg.get("callbacks"))
    parts, devices = OmegaConf.select(cfg, "reg.num_sub_batches") if regularized else 1, cfg.trainer.devices
    parts = (parts or 1) // (devices if isinstance(devices, int) and devices > 0 else parts or 1)
    passed = [OmegaConf.select(cfg, f"data.{key}") for key in ("channels", "image_size", "num_classes", "batch_size")]
    shapes = [OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for v in passed]
    model, network, metric = (
        new("model", cfg.model),
        new("net", cfg.model.net, shapes, parts),
        new("metric", cfg.metric),
    )
    if not (model or network or metric):
        return
    module = make_module(cfg.model)
    if model:
        check_optimizer(module)
    if network:
        check_network(module, made("data", cfg.data, ImageDataModule), parts)
    if metric and cfg.metric.at_end != "none":
        make_metrics(cfg.metric, cfg.metric.at_end, dict(module.net.state_dict()) if cfg.metric.measures else None)


def check_optimizer(module: ImageClassifier) -> Any:
    """Make the optimizer and its scheduler once, and return the scheduler.

    Raises:
        ConfigError: in one line.
    """
    key, scheduler = "model.optimizer", None
    try:
        optimizer = module.make_optimizer(list(module.net.parameters()))
        key = "model.scheduler"
        if module.make_scheduler is not None:
            scheduler = module.make_scheduler(optimizer)
    except UNFIT as error:
        if key == "model.optimizer":
            check_optimizer_options(module.make_optimizer)
        raise ConfigError(name_option(key, error)) from error
    return scheduler


def check_optimizer_options(make: Any) -> None:
    """Refuse options that an optimizer doesn't take: those of the recipe stay when only its ``_target_`` is replaced.

    Raises:
        ConfigError: in one line.
    """
    if not isinstance(make, functools.partial) or not isinstance(make.func, type):
        return
    parameters = list(inspect.signature(make.func).parameters.values())
    unknown = [name for name in make.keywords if name not in {p.name for p in parameters}]
    if not unknown or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    name = make.func.__name__
    choice = f"choose `optimizer={name.lower()}`" if name.lower() in config_groups()["optimizer"] else ""
    deleted = "delete " + " ".join(f"`~model.optimizer.{option}`" for option in unknown)
    raise ConfigError(
        f"Unknown option `model.optimizer.{unknown[0]}`: {name} takes {', '.join(p.name for p in parameters[1:])}. "
        f"If it is left from the model's recipe, {' or '.join(filter(None, (choice, deleted)))}."
    )


def check_checkpoint(module: ImageClassifier, path: Path) -> None:
    """Refuse a checkpoint that is not one of this network's training.

    Raises:
        ConfigError: naming the file, and the first tensor that does not fit.
    """
    kept = torch.load(path, map_location="cpu", weights_only=True)
    own, found = module.state_dict(), kept.get("state_dict") if isinstance(kept, dict) else None
    if not isinstance(found, dict) or not {"epoch", "loops", "optimizer_states", "callbacks"} <= kept.keys():
        wrong = "it holds no state of a training"
    else:
        names = [n for n in {**own, **found} if getattr(own.get(n), "shape", 0) != getattr(found.get(n), "shape", 1)]
        wrong = f"its `{names[0]}` does not fit this network" if names else ""
    if wrong:
        raise ConfigError(
            f"Expected a checkpoint of this run, but got `{path}`: {wrong}. Remove it, or train again from scratch "
            "with restart=true."
        )


VALIDATED = ["val_loss", "val_error", "val_error_top5"]
GAMMA = ["gamma", "gamma_residual", "gamma_sensitivity", "gamma_magnitude", "gamma_direction"]


def _check_monitors(run: Run, scheduler: Any) -> None:
    """The value that a plateau scheduler or a callback watches is logged at the end of every epoch."""
    logged = ["train_loss", "train_error"]
    if run.datamodule.validation_size and run.trainer.limit_val_batches:
        logged += VALIDATED
    if run.monitor is not None and run.monitor.every_n_validations == 1:
        logged += GAMMA
    name = run.module.scheduler_monitor
    if isinstance(scheduler, ReduceLROnPlateau) and name not in logged:
        raise ConfigError(f"Expected option `model.scheduler_monitor` to be {listing(logged)}, but got `{name}`.")
    for key, callback in run.own.items():
        watched = getattr(callback, "monitor", None)
        if (
            watched in (*VALIDATED, *GAMMA) and watched not in logged
        ):  # others may be logged by a callback of the user's
            why = "there is no validation" if watched in VALIDATED else "γ̂ isn't measured in every validation"
            raise ConfigError(
                f"Expected option `callbacks.{key}.monitor` to be {listing(logged)}, but got `{watched}`: {why}."
            )

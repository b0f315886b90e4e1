"""Train one run and record it as a row."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment import context
from lightning_fisher.experiment.config.config_hash import data_fingerprint
from lightning_fisher.experiment.config.error_messages import explain, name_option
from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.records import run_folders
from lightning_fisher.experiment.records.checkpoints import resumable
from lightning_fisher.experiment.records.option_names import value_name
from lightning_fisher.experiment.records.result import complete_row, write_atomically, write_row
from lightning_fisher.experiment.records.run_folders import CHECKPOINTS
from lightning_fisher.experiment.report.training_figure import dashboard
from lightning_fisher.experiment.training import loggers
from lightning_fisher.experiment.training.build import Run, build
from lightning_fisher.experiment.training.collect_result import make_row
from lightning_fisher.experiment.training.console import print_plan, print_row
from lightning_fisher.experiment.training.preflight import check_checkpoint, check_run, load_training_data

HINTS = (
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    "Checkpoint directory .* exists and is not empty",
    ".*have no `val_dataloader`.*",
)


def train(job: Job) -> dict[str, Any] | None:
    """Train, measure and record one run, or go on with it.

    Args:
        job: with a config that was checked, and not complete.

    Returns:
        The row; None on the processes other than the first.

    Raises:
        ConfigError: if the config cannot work.
    """
    cfg, folder, digest = job.cfg, job.folder, job.config_hash
    first = context.rank() == 0
    quieten()
    patience = math.inf if context.CHECKED in os.environ else 5.0  # another sweep may have the same job
    with run_folders.lock(folder, patience) if first else run_folders.unlocked():
        row = complete_row(folder, digest) if first and not cfg.restart else None
        if row is not None:
            print_row(row, folder, "Complete already: another process has trained it.")
            return row
        if first:
            run_folders.check_own(folder)
            run_folders.clear(folder) if cfg.restart else run_folders.remove_leftovers(folder)
        seed_everything(cfg.seed, workers=True, verbose=False)
        run = build(cfg, folder, OmegaConf.select(cfg, "study.name"), digest)
        check_run(run)  # before the data, which may have to be fetched first
        load_training_data(run, cfg)
        checkpoint = resumable(folder) if not cfg.restart else None
        run_folders.check_same(folder, digest, job.earlier_hash)
        if checkpoint is not None:
            check_checkpoint(run.module, checkpoint)
        if first:
            write_atomically(
                folder / "config.yaml",
                run_folders.header(digest, data_fingerprint(cfg)) + OmegaConf.to_yaml(cfg, resolve=True),
            )
            write_atomically(folder / "overrides.yaml", OmegaConf.to_yaml(job.overrides))
            print_plan(job, run, checkpoint)
        try:
            with run.ranks.together():
                fit(run, checkpoint)
                test(run)
        except ConfigError:
            if first and not any((folder / CHECKPOINTS).glob("*.ckpt")):
                run_folders.clear(folder)  # it never came to anything
            raise
        if not run.trainer.is_global_zero:
            return None
        row = make_row(job, run)
        network, data = value_name("model", cfg.model.name), value_name("data", cfg.data.name)
        figure = dashboard(folder, title=f"{network} on {data}, seed {cfg.seed}")
        loggers.finish(run.loggers, row, [figure])
        write_row(folder, row)
        print_row(row, folder)
        return row


def quieten() -> None:
    """Leave out Lightning's greetings and hints; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for hint in HINTS:
        warnings.filterwarnings("ignore", message=hint)


def fit(run: Run, checkpoint: Path | None) -> None:
    """Train from a checkpoint or from the beginning.

    Raises:
        KeyboardInterrupt: if the user interrupted the training.
        ConfigError: if Lightning refuses a combination of options, or an image cannot be read.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run.ranks.checkpoint = checkpoint
    if isinstance(run.trainer.precision_plugin, DoublePrecision):
        run.module.double()  # Lightning does so after it has loaded the checkpoint, which would round it to float32
    with interruptible(run):
        try:
            run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=checkpoint, weights_only=True)
        except MisconfigurationException as error:
            raise ConfigError(name_option("trainer", error)) from error
        except ValueError as error:  # an image that cannot be read
            line = explain(error)
            raise error if line is None else ConfigError(line) from error


@contextmanager
def interruptible(run: Run) -> Iterator[None]:
    """Undo that Lightning turns an interruption into an exit.

    Raises:
        KeyboardInterrupt: if there was one.
    """
    try:
        yield
    except SystemExit:
        if run.trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def test(run: Run) -> None:
    """Measure loss and errors of the finished network, and its local-minima metrics."""
    start = time.perf_counter()
    if run.trainer.is_global_zero and run.measurement is not None:
        print("measuring the finished network", flush=True)
    with interruptible(run):
        run.trainer.test(run.module, datamodule=run.datamodule, verbose=False)
    run.history.test_seconds = time.perf_counter() - start

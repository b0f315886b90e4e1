"""Train one run and record it as a row."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment import folders, loggers
from lightning_fisher.experiment.build import Run, build
from lightning_fisher.experiment.checkpoints import resumable
from lightning_fisher.experiment.checks import check_config, check_data
from lightning_fisher.experiment.dashboard import dashboard
from lightning_fisher.experiment.errors import ConfigError, name_option
from lightning_fisher.experiment.outcome import make_row
from lightning_fisher.experiment.row import complete_row, write_atomically, write_row
from lightning_fisher.experiment.run_name import config_hash
from lightning_fisher.experiment.summary import print_plan, print_row

HINTS = (
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    "Checkpoint directory .* exists and is not empty",
    ".*have no `val_dataloader`.*",
)


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Train, measure and record one run, or go on with it, or show it if it is complete.

    Args:
        cfg: the composed config, without Hydra's own node.

    Returns:
        The row; None on the processes other than the first.

    Raises:
        ConfigError: if the config cannot work.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    overrides = [str(override) for override in hydra_config.overrides.task]
    choices = {key: value for key, value in hydra_config.runtime.choices.items() if not key.startswith("hydra/")}
    first = getattr(rank_zero_only, "rank", 0) == 0  # known before the trainer: Lightning tells the processes it starts
    folders.enter(folder)
    quieten()
    check_config(cfg, overrides)
    digest = config_hash(cfg)
    row = None if cfg.restart else complete_row(folder, digest)
    if row is not None:
        if first:
            print_row(row, folder, "Complete already; restart=true trains it again.")
        return row
    with folders.lock(folder) if first else folders.unlocked():
        if cfg.restart and first:
            folders.clear(folder)
        seed_everything(cfg.seed, workers=True, verbose=False)
        run = build(cfg, folder, OmegaConf.select(cfg, "study.name"), digest)
        load_data(run, cfg)
        check_run(run)
        checkpoint = resumable(folder) if not cfg.restart else None
        folders.check_same(folder, digest)
        if first:
            write_atomically(
                folder / "config.yaml", f"# config hash: {digest}\n" + OmegaConf.to_yaml(cfg, resolve=True)
            )
            write_atomically(folder / "overrides.yaml", OmegaConf.to_yaml(overrides))
            print_plan(cfg, choices, run, folder, checkpoint)
        fit(run, checkpoint)
        test(run)
        if not run.trainer.is_global_zero:
            return None
        row = make_row(cfg, run, overrides, choices, digest)
        figure = dashboard(folder, title=f"{cfg.model.name} on {cfg.data.name}, seed {cfg.seed}")
        loggers.finish(run.loggers, row, [figure])
        write_row(folder, row)
        print_row(row, folder)
        return row


def load_data(run: Run, cfg: DictConfig) -> None:
    """Load the data set, so that what is missing or does not fit is told before anything is written.

    Raises:
        ConfigError: in one line.
    """
    try:
        run.datamodule.prepare_data()
        run.datamodule.setup("fit")
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(name_option("data", error)) from error
    check_data(cfg, len(run.datamodule.clean_set))


def check_run(run: Run) -> None:
    """Try what would otherwise fail after the folder was begun: optimizer, network, and what the regulariser supports.

    Raises:
        ConfigError: in one line.
    """
    data, module = run.datamodule, run.module
    height, width = (data.image_size, data.image_size) if isinstance(data.image_size, int) else data.image_size
    key = "model.optimizer"
    try:
        optimizer = module.make_optimizer(list(module.net.parameters()))
        key = "model"
        if module.make_scheduler is not None:
            module.make_scheduler(optimizer)
        key = "model.net"
        with torch.no_grad():
            module.net.eval()(torch.zeros(2, data.channels, height, width))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(name_option(key, error)) from error
    module.train()
    if run.regularizer is not None:
        try:
            run.regularizer.setup(run.trainer, run.module, "fit")
        except ValueError as error:
            raise ConfigError(name_option("reg", error)) from error


def quieten() -> None:
    """Leave out Lightning's greetings and hints; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for hint in HINTS:
        warnings.filterwarnings("ignore", message=hint)


def fit(run: Run, checkpoint: Path | None) -> None:
    """Train from a checkpoint or from the beginning.

    Raises:
        KeyboardInterrupt: if the user interrupted the training.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=checkpoint)
    except SystemExit:
        if run.trainer.interrupted:  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from None
        raise


def test(run: Run) -> None:
    """Measure loss and errors of the finished network, and its local-minima metrics."""
    start = time.perf_counter()
    if run.trainer.is_global_zero and run.measurement is not None:
        print("measuring the finished network", flush=True)
    run.trainer.test(run.module, datamodule=run.datamodule, verbose=False)
    run.history.test_seconds = time.perf_counter() - start

"""Every network of a zoo: its row, its weights, and the subsets that its measures were computed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME
from lightning_fisher.experiment.config.config_hash import config_hash, earlier_hash, hash_by_place
from lightning_fisher.experiment.config.files import check_files
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.records.result import require_rows
from lightning_fisher.experiment.report.rows import Row
from lightning_fisher.experiment.scoring.subset_metrics import fetch
from lightning_fisher.experiment.training.final_metrics import make_monitor
from lightning_fisher.experiment.training.preflight import load_data
from lightning_fisher.experiment.zoo.weights import load_weights


@dataclass
class ZooNetwork:
    """A network of a zoo.

    Attributes:
        row: its row: test error, options, every measure so far.
        net: with its weights, in evaluation mode, on the CPU.
        subsets: inputs and labels of the subsets of training images that its measures were computed on.
    """

    row: Row
    net: nn.Module
    subsets: list[tuple[Tensor, Tensor]]


def networks(folder: str | Path) -> Iterator[ZooNetwork]:
    """The networks of a folder with rows, one after the other.

    The weights are those of ``weights.npz`` in the folder, of ``weights.pt`` beside a row (a state dict), or of the
    runs' own checkpoints. The data set has to be there, as for training.

    Args:
        folder: as ``multirun/zoo-digits``.

    Yields:
        One network a row.

    Raises:
        ConfigError: if there is no row, weights are missing, or the configs aren't those of the rows.
    """
    folder = Path(folder)
    for run, row in require_rows(folder):
        yield load_network(folder, run, row)


def load_network(folder: Path, run: Path, row: Row) -> ZooNetwork:
    """The network of one row.

    Args:
        folder: of the zoo.
        run: folder of the run.
        row: of the run.

    Raises:
        ConfigError: as :func:`networks`.
    """
    cfg = config_of(row)
    net = instantiate(cfg.model.net)
    load_weights(net, folder, run)
    return ZooNetwork(row, net.eval(), _subsets(cfg, net))


def config_of(row: Row) -> DictConfig:
    """Compose the config of a row.

    Raises:
        ConfigError: if it is another than the row was made with, or its images aren't there.
    """
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(CONFIG_NAME, overrides=row["overrides"])
    if all(row["config_hash"] != made(cfg) for made in (config_hash, earlier_hash, hash_by_place)):
        check_files(cfg)  # an archive counts by its content: without it the hash is another one
        raise ConfigError(
            f"Expected the configs that the row {row['config_hash']} was made with, but they were changed since: take "
            "the version of its commit."
        )
    return cfg


def _subsets(cfg: DictConfig, net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    data = instantiate(cfg.data)
    load_data(data, cfg)
    positions = make_monitor(cfg.metric, "curve").subsets(len(data.clean_set))
    return [fetch(data.clean_set, torch.tensor(one), data.normalization, net) for one in positions]

"""Every YAML under conf/ composes, resolves and instantiates; nothing needs data on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME, config_groups
from lightning_fisher.experiment.config.config_hash import flat_config
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.training.build import make_module, make_trainer
from lightning_fisher.experiment.training.loggers import make_loggers

GROUPS = config_groups()
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names if not group.startswith("study/")]


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(CONFIG_NAME, overrides=list(overrides))


def instantiate_all(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """What a run instantiates, the network without memory for its weights."""
    with torch.device("meta"):
        module = make_module(cfg.model)
    made: dict[str, Any] = {"module": module, "data": instantiate(cfg.data)}
    made["optimizer"] = module.configure_optimizers()
    if OmegaConf.select(cfg, "reg._target_"):
        made["reg"] = instantiate(cfg.reg)
    if cfg.stop is not None:
        made["stop"] = instantiate(cfg.stop)
    made["loggers"] = make_loggers(cfg.logger, folder, None, "12345678")
    cfg.trainer.accelerator = "cpu"
    made["trainer"] = make_trainer(cfg.trainer, [], [], folder)
    return made


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{group}={name}" for group, name in CHOICES])
def test_every_choice_composes_and_instantiates(group: str, name: str, tmp_path: Path) -> None:
    cfg = composed(f"{group}={name}")
    assert flat_config(cfg)  # every interpolation resolves
    instantiate_all(cfg, tmp_path)


def test_the_groups_of_the_documentation_exist() -> None:
    assert {"model", "data", "scenario", "reg", "trainer", "logger", "experiment", "size"} <= set(GROUPS)


def test_the_example_composes() -> None:
    cfg = composed("model=wrn28_2", "data=cifar100", "reg.beta=20")
    assert (cfg.model.name, cfg.data.name, cfg.reg.beta) == ("wrn28_2", "cifar100", 20)
    assert cfg.model.net.num_classes == 100
    assert cfg.data.batch_size == 128


def test_seed_zero_is_a_seed() -> None:
    assert composed().seed == 0
    assert composed().data.seed == 0
    assert composed("seed=3").data.seed == 3


def test_several_loggers_at_once(tmp_path: Path) -> None:
    cfg = composed("logger=[csv,tensorboard,wandb]")
    kinds = [type(logger).__name__ for logger in make_loggers(cfg.logger, tmp_path, "study", "12345678")]
    assert kinds == ["CSVLogger", "TensorBoardLogger", "LastingWandbLogger"]


def test_one_logger_replaces_the_default() -> None:
    assert list(composed("logger=tensorboard").logger) == ["tensorboard"]


def test_max_epochs_follows_the_model() -> None:
    cfg = composed("model.max_epochs=7")
    assert cfg.trainer.max_epochs == 7
    assert cfg.model.scheduler.max_epochs == 7


def test_label_smoothing_is_a_choice_of_regularizer() -> None:
    cfg = composed("reg=label_smoothing")
    assert cfg.model.label_smoothing == 0.1
    assert OmegaConf.select(cfg, "reg._target_") is None


OWN = [p for p in sorted(CONFIG_DIR.rglob("*.yaml")) if p.relative_to(CONFIG_DIR).parts[0] not in ("model", "data")]


@pytest.mark.parametrize("path", OWN, ids=[str(p.relative_to(CONFIG_DIR)) for p in OWN])
def test_every_file_says_what_it_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ")
    assert len(first) > 20

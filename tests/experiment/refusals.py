"""What a command would be answered, up to the moment before the run folder is begun; in this process."""

from __future__ import annotations

import functools
from pathlib import Path
from unittest import mock

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.compose import (
    CONFIG_DIR,
    CONFIG_NAME,
    config_groups,
    defaults,
    group_overrides,
    known_options,
)
from lightning_fisher.experiment.config.error_messages import explain
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.config.validation import check_config
from lightning_fisher.experiment.training.build import Run, build
from lightning_fisher.experiment.training.preflight import check_run, load_training_data


@functools.cache
def _defaults(chosen: tuple[str, ...]) -> DictConfig:
    return defaults(list(chosen))


def checked(overrides: list[str]) -> DictConfig:
    """Compose and check a config; the defaults to compare with are composed once for each choice of groups."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(CONFIG_NAME, overrides=overrides)
        with mock.patch(
            "lightning_fisher.experiment.config.validation.defaults",
            lambda given: _defaults(tuple(group_overrides(given))),
        ):
            check_config(cfg, overrides)
    return cfg


def built(overrides: list[str], folder: Path) -> tuple[DictConfig, Run]:
    """The config and the objects of a command."""
    cfg = checked(overrides)
    return cfg, build(cfg, folder, None, "12345678")


def refusal(overrides: list[str], folder: Path) -> str | None:
    """The line about the first mistake in ``overrides``, None if there is none.

    Raises:
        Exception: whatever is not explained in one line.
    """
    try:
        cfg, run = built(overrides, folder)
        check_run(run)
        load_training_data(run, cfg)
    except Exception as error:
        known = [] if isinstance(error, ConfigError) else known_options(overrides)
        line = explain(error, known, config_groups())
        if line is None:
            raise
        return line
    return None

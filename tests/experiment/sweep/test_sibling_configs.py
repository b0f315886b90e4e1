"""Configs of jobs that are made from one another are those that Hydra composes."""

from __future__ import annotations

from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.sweep.sibling_configs import SiblingConfigs

# The jobs of a sweep, and how many of them Hydra has to compose.
SWEEPS: list[tuple[list[list[str]], int]] = [
    ([[f"seed={s}", f"reg.beta={b}"] for s in (0, 1) for b in (0, 10, "auto")], 1),
    ([[f"reg={r}", f"seed={s}"] for r in ("fisher", "sam", "none") for s in (0, 1)], 3),
    (
        [["reg.beta=10", f"metric.measures={m}", f"data.image_size={i}"] for m, i in (("[a,b]", "8"), ("[]", "[8,9]"))],
        1,
    ),
    ([["reg=fisher", "reg.start=0.5", f"reg.start={s}", "~model.optimizer.momentum"] for s in (1, "null")], 1),
    ([[f"+callbacks.x={x}", "seed=1"] for x in ("1", "2")], 2),
    ([[f"model.optimizer={o}", "seed=1"] for o in ("{lr:1}", "{lr:2}")], 2),
    ([[f"stop={x}", f"score.checkpoint={y}", "seed=3"] for x, y in (("null", "a"), ("null", "'b=c,d'"))], 1),
    ([["model/scheduler=cosine", f"model.max_epochs={e}", "trainer=cpu"] for e in (3, 4)], 1),
]


@pytest.fixture(scope="module")
def loader() -> ConfigLoaderImpl:
    register_resolvers()
    return ConfigLoaderImpl(config_search_path=create_config_search_path(str(CONFIG_DIR)))


def written(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)


@pytest.mark.parametrize(("jobs", "composed"), SWEEPS)
def test_they_are_what_hydra_composes(jobs: list[list[str]], composed: int, loader: ConfigLoaderImpl) -> None:
    master = loader.load_configuration(CONFIG_NAME, [], RunMode.MULTIRUN)
    calls: list[list[str]] = []

    def compose(config: DictConfig, overrides: list[str]) -> DictConfig:
        calls.append(overrides)
        return loader.load_sweep_config(config, overrides)

    made = SiblingConfigs(loader, compose)
    for overrides in jobs:
        found, expected = made(master, overrides), loader.load_sweep_config(master, overrides)
        assert written(found) == written(expected)
        assert OmegaConf.is_struct(found)
        found.seed = 99  # what is done to one changes no other
    assert len(calls) == composed


def test_a_mistake_is_hydras_to_tell(loader: ConfigLoaderImpl) -> None:
    master = loader.load_configuration(CONFIG_NAME, [], RunMode.MULTIRUN)
    made = SiblingConfigs(loader, loader.load_sweep_config)
    made(master, ["reg.start=1", "reg={}", "seed=1"])
    with pytest.raises(Exception, match=r"Could not override 'reg\.nothing'"):
        made(master, ["reg.nothing=1", "seed=1"])

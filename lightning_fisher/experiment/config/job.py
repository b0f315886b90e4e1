"""One job: its config, where its files go, and how it was asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightning_fisher.experiment.config.config_hash import config_hash, earlier_hash, flat_config


@dataclass(frozen=True)
class Job:
    """One job of the command line: a run to train, or networks to score.

    Attributes:
        cfg: the composed config, without Hydra's own node.
        folder: where its files go.
        overrides: the overrides it was asked for with.
        choices: the chosen config of every group, Hydra's own aside.
    """

    cfg: DictConfig
    folder: Path
    overrides: list[str]
    choices: dict[str, str]

    @classmethod
    def of_hydra(cls, cfg: DictConfig) -> Job:
        """The job that Hydra is at."""
        hydra_config = HydraConfig.get()
        return cls(
            cfg=cfg,
            folder=Path(hydra_config.runtime.output_dir),
            overrides=[str(override) for override in hydra_config.overrides.task],
            choices={k: v for k, v in hydra_config.runtime.choices.items() if not k.startswith("hydra/")},
        )

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """The values of its options, resolved and flat."""
        return flat_config(self.cfg)

    @functools.cached_property
    def config_hash(self) -> str:
        """Identifies its result."""
        return config_hash(self.cfg, flat=self.values)

    @functools.cached_property
    def earlier_hash(self) -> str:
        """What identified it in 0.1.0."""
        return earlier_hash(self.cfg)

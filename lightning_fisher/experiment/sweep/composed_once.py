"""The configs of a sweep's jobs, composed once instead of twice."""

from __future__ import annotations

from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf


class ComposedOnce:
    """In place of ``load_sweep_config`` of Hydra's loader: hand on what was composed to check it.

    The sweeper composes every job's config before the first one starts, so that a mistake in the last one is found at
    once, and drops it; the launcher composes it again. A launcher's worker in another process composes by itself.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self.made: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose the config of a job, or return it, the first time it is asked for again: the launcher changes it."""
        key = tuple(sweep_overrides)
        found = self.made.pop(key, None)
        if found is not None and OmegaConf.is_missing(found.hydra.job, "num"):  # of no job yet: two may be the same
            return found
        self.made[key] = type(self.loader).load_sweep_config(self.loader, master_config, sweep_overrides)
        return self.made[key]

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without the configs."""
        return {"loader": self.loader, "made": {}}

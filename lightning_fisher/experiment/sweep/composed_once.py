"""The configs of a sweep's jobs, composed once instead of twice, and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment import context
from lightning_fisher.experiment.sweep.first_check import FirstCheck, refused
from lightning_fisher.experiment.sweep.sibling_configs import SiblingConfigs


class ComposedOnce:
    """In place of ``load_sweep_config`` of Hydra's loader: hand on what was composed to check it.

    The sweeper composes every job's config before the first one starts, and drops it; the launcher composes it again. A
    launcher's worker in another process composes by itself. What is composed first is checked there and then, so that
    a mistake in the last job is found at once.

    A job whose groups bring a sweep of their own (``-m experiment=table1,table2``) would run without it: refused.

    Args:
        loader: Hydra's.
        params: the sweep that the configs of the command hold.
        fixed: the options that the command itself doesn't sweep.
        jobs: of the sweep; None where the sweeper decides on them as it goes on.
    """

    def __init__(
        self, loader: ConfigLoader, params: Mapping[str, Any], fixed: Sequence[str], jobs: int | None = None
    ) -> None:
        self.loader = loader
        self.fixed = fixed
        self.params = params
        self.made: dict[tuple[str, ...], DictConfig] = {}
        self.siblings: SiblingConfigs | None = None
        self.first: FirstCheck | None = FirstCheck(jobs, fixed)
        self.total = 0  # jobs of the sweep; known when the first one starts

    def __call__(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose the config of a job, or return it, the first time it is asked for again: the launcher changes it."""
        key = tuple(sweep_overrides)
        if key in self.made:
            self.total = self.total or len(self.made)
        context.current().jobs = self.total
        found = self.made.pop(key, None)
        if found is not None and OmegaConf.is_missing(found.hydra.job, "num"):  # of no job yet: two may be the same
            return found
        try:
            if self.siblings is None:
                load = partial(type(self.loader).load_sweep_config, self.loader)  # not the instance's: that is this
                self.siblings = SiblingConfigs(self.loader, load)
            made = self.siblings(master_config, sweep_overrides)
            self._check(made, sweep_overrides)
            if self.first is not None and not self.total:
                self.first.check(made, sweep_overrides)
        except Exception as error:
            raise refused(error, sweep_overrides, self.fixed) from error
        self.made[key] = made
        return made

    def _check(self, made: DictConfig, overrides: list[str]) -> None:
        """Refuse a job whose configs hold another sweep than those of the command.

        Raises:
            ConfigError: naming the group that brings it.
        """
        params = OmegaConf.select(made, "hydra.sweeper.params")
        own = dict(OmegaConf.to_container(params)) if params is not None else {}  # type: ignore[arg-type]
        if own == dict(self.params):
            return
        swept = [o.partition("=") for o in overrides if o.partition("=")[0] not in self.fixed]
        group, _, value = next((o for o in swept if o[0] in ("experiment", "size")), swept[0])
        raise ConfigError(
            f"Expected option `{group}` to be one value, but got several: `{value}` holds a sweep of its own "
            f"({', '.join(own) or 'none'}), which would not run. Give one command for each."
        )

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without the configs."""
        total = self.total or len(self.made)
        shared = {"loader": self.loader, "params": self.params, "fixed": self.fixed}
        return {**shared, "made": {}, "first": None, "siblings": None, "total": total}

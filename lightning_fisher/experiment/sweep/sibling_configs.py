"""Configs of jobs that differ in values only, made from one another instead of from their files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

Compose = Callable[[DictConfig, list[str]], DictConfig]


class SiblingConfigs:
    """Compose the config of a job; of jobs with the same groups and options, the first one by Hydra.

    Every later one is a copy of the first in which its own values are set, one override after the other, as Hydra sets
    them. Overrides that add, delete or merge, and whatever fails, are left to Hydra.

    Args:
        loader: Hydra's, of the command.
        compose: its ``load_sweep_config``.
    """

    def __init__(self, loader: ConfigLoader, compose: Compose) -> None:
        self._repository = loader.repository  # type: ignore[attr-defined]
        self._compose = compose
        self._parser = OverridesParser.create()
        self._first: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, master_config: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """The config of a job.

        Args:
            master_config: of the command.
            overrides: of the job, those of the command among them.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        key = tuple(o.key_or_group if self._sets_a_value(o) else str(o.input_line) for o in parsed)
        first = self._first.get(key)
        if first is not None:
            try:
                return self._sibling(first, master_config, parsed)
            except Exception:
                pass  # Hydra's own composing says what is wrong
        made = self._compose(master_config, list(overrides))
        if first is None:
            self._first[key] = copy.deepcopy(made)
        return made

    def _sets_a_value(self, override: Override) -> bool:
        """Whether an override sets an option that exists to a value, and nothing else."""
        key = override.key_or_group
        plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        is_group = override.is_hydra_override() or self._repository.group_exists(key.replace(".", "/"))
        return plain and not is_group and not isinstance(override.value(), dict)

    def _sibling(self, first: DictConfig, master_config: DictConfig, parsed: Sequence[Override]) -> DictConfig:
        made = copy.deepcopy(first)
        for override in parsed:
            if self._sets_a_value(override):
                OmegaConf.update(made, override.key_or_group, override.value(), merge=True)
        tasks = [override for override in parsed if not override.is_hydra_override()]
        made.hydra.overrides.task = [override.input_line for override in tasks]
        names = made.hydra.job.config.override_dirname
        made.hydra.job.override_dirname = get_overrides_dirname(
            overrides=tasks, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        OmegaConf.clear_cache(made)
        OmegaConf.copy_cache(from_config=master_config, to_config=made)
        return made

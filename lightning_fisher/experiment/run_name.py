"""Stable names: the hash of what determines a result, and a folder name made of it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment.options import flatten

# What can change without changing the result: it stays out of the hash.
NOT_HASHED = ("logger.", "debug", "restart", "hydra.", "study.", "study")
NOT_HASHED_ENDINGS = (".root", ".num_workers", ".pin_memory", ".enable_progress_bar")


def flat_config(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a config and flatten it to ``{"reg.beta": 10.0, ...}``."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    container.pop("hydra", None)
    flat = {}
    for key in flatten(container):
        value = OmegaConf.select(cfg, key)
        flat[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return flat


def config_hash(cfg: DictConfig) -> str:
    """Hash everything that determines the result: 8 hexadecimal digits of SHA-256.

    Loggers, progress bars, worker counts and the folder of the data set are left out: a run continues, and
    counts as complete, when only those change.
    """
    flat = {
        key: value
        for key, value in flat_config(cfg).items()
        if not key.startswith(NOT_HASHED) and not key.endswith(NOT_HASHED_ENDINGS)
    }
    text = json.dumps(flat, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def slug(overrides: list[str], skip: tuple[str, ...]) -> str:
    """Make a readable folder name of overrides: ``confusion_size=200_seed=1``; at most 80 characters."""
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        root = key.split(".")[0]
        if root not in skip:
            parts.append(f"{key.rpartition('.')[2]}={value}")
    return re.sub(r"[^\w=.+-]+", "-", "_".join(parts)).strip("-")[:80]


def run_name(*, _root_: DictConfig) -> str:
    """Name a run by its overrides and its config hash, the same for the same command.

    Used as ``${run_name:}`` in ``hydra.run.dir`` and ``hydra.sweep.subdir``.
    """
    overrides = [str(o) for o in _root_.hydra.overrides.task]
    name = slug(overrides, skip=("experiment", "size", "logger", "debug", "restart"))
    return f"{name or 'default'}-{config_hash(_root_)}"


def sweep_name(*, _root_: DictConfig) -> str:
    """Name the folder of a sweep: the study and its size, or the data set and the network.

    Used as ``${sweep_name:}`` in ``hydra.sweep.dir``.
    """
    study = OmegaConf.select(_root_, "study.name")
    size = OmegaConf.select(_root_, "hydra.runtime.choices.size")
    return f"{study}-{size}" if study else f"{_root_.data.name}-{_root_.model.name}"


def register_resolvers() -> None:
    """Register ``${run_name:}`` and ``${sweep_name:}`` with OmegaConf."""
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)

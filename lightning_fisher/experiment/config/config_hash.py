"""The hash of everything in a config that determines a result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment.config.compose import flatten
from lightning_fisher.experiment.config.score_request import fingerprints, is_scoring
from lightning_fisher.experiment.records.result import is_as_before

# What can change without changing the result: it stays out of the hash.
NOT_HASHED = ("logger.", "debug", "restart", "hydra.", "study.", "study")
NOT_HASHED_ENDINGS = (".root", ".num_workers", ".pin_memory", ".enable_progress_bar", "reg.passes")


# Options of the machine that were hashed once: as they were by default then, whatever they are.
HASHED_AS = {"data.download": False}


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

    Loggers, progress bars, worker counts, the folder of the data set and whether it may be fetched are left out: a run
    continues, and counts as complete, when only those change; so are options that came later, at what there was before.
    Of a command that scores, the content of the checkpoints is part of it; of one that trains, the options of scoring
    are not.
    """
    scoring = is_scoring(cfg)
    left_out = NOT_HASHED if scoring else (*NOT_HASHED, "score.")
    flat = {
        key: HASHED_AS.get(key, value)
        for key, value in flat_config(cfg).items()
        if not key.startswith(left_out) and not key.endswith(NOT_HASHED_ENDINGS) and not is_as_before(key, value)
    }
    if scoring:
        flat["score.checkpoint.sha256"] = fingerprints(cfg)
    text = json.dumps(flat, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]

"""The hash of everything in a config that determines a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from lightning_fisher.data.sources.fingerprint import fingerprint
from lightning_fisher.experiment import context
from lightning_fisher.experiment.config.compose import flatten
from lightning_fisher.experiment.config.score_request import fingerprints, is_scoring
from lightning_fisher.experiment.records.result import is_as_before

# What can change without changing the result: it stays out of the hash.
NOT_HASHED = ("logger.", "debug", "restart", "hydra.", "study.", "study")
NOT_HASHED_ENDINGS = (".num_workers", ".pin_memory", ".enable_progress_bar", "reg.passes")

# Options of the machine and of what is shown: hashed as they are by default, whatever they are.
HASHED_AS = {
    "data.download": False,
    "trainer.accelerator": "auto",
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": 0,
    "trainer.benchmark": None,
    "trainer.deterministic": None,
    "trainer.enable_model_summary": False,
}
# Where the user's own data lie, by the name of the data set: their content is hashed instead. Of the others, which are
# the same for everybody, the place is hashed as it is by default.
PLACES = {"arrays": "data.path", "imagenet": "data.data_dir"}
DEFAULT_PLACE = ("data.data_dir", "data")


def flat_config(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a config and flatten it to ``{"reg.beta": 10.0, ...}``."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    container.pop("hydra", None)
    flat = flatten(container)
    for key, written in flat.items():
        if _refers(written):
            value = OmegaConf.select(cfg, key)
            flat[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return flat


def _refers(written: Any) -> bool:
    """Whether a value is another than what is written: it refers to others, or is missing."""
    if isinstance(written, str):
        return "${" in written or written == MISSING
    if isinstance(written, dict):
        return any(map(_refers, written.values()))
    return isinstance(written, list) and any(map(_refers, written))


def is_hashed(key: str, value: str) -> bool:
    """Whether an override can change the result; a group's choice can, but for `trainer=cpu`."""
    machine = key in HASHED_AS or key.startswith(NOT_HASHED) or key.endswith(NOT_HASHED_ENDINGS)
    return not machine and (key, value) != ("trainer", "cpu")


def earlier_hash(cfg: DictConfig) -> str:
    """The hash of 0.1.0, which held options of the machine too: runs that it began are continued."""
    return config_hash(cfg, machine=True)


def hash_by_place(cfg: DictConfig) -> str:
    """The hash of 0.1.0 where the data are the user's own: it held their path, and nothing of their content."""
    return config_hash(cfg, machine=True, content=False)


def config_hash(
    cfg: DictConfig, *, machine: bool = False, content: bool = True, flat: Mapping[str, Any] | None = None
) -> str:
    """Hash everything that determines the result: 8 hexadecimal digits of SHA-256.

    Loggers, progress bars, worker counts, the accelerator, the place of the data set and whether it may be fetched are
    left out: a run continues, and counts as complete, when only those change; so are options that came later, at what
    there was before. The content of the user's own data is part of it
    (:mod:`lightning_fisher.data.sources.fingerprint`).
    Of a command that scores, the content of the checkpoints is part of it; of one that trains, the options of scoring
    are not.

    Args:
        cfg: the composed config.
        machine: whether the options of the machine count too.
        content: whether the content of the user's own data counts, and not their place.
        flat: its values (`flat_config`), where they are known.
    """
    hashed_as = {"data.download": False} if machine else HASHED_AS
    scoring = is_scoring(cfg)
    left_out = NOT_HASHED if scoring else (*NOT_HASHED, "score.")
    flat = {
        key: hashed_as.get(key, value)
        for key, value in (flat_config(cfg) if flat is None else flat).items()
        if not key.startswith(left_out) and not key.endswith(NOT_HASHED_ENDINGS) and not is_as_before(key, value)
    }
    place = PLACES.get(str(flat.get("data.name")))
    if place is not None and place in flat:
        if content:
            del flat[place]
            flat["data.fingerprint"] = data_fingerprint(cfg)
    elif DEFAULT_PLACE[0] in flat:
        flat.update([DEFAULT_PLACE])
    if scoring:
        flat["score.checkpoint.sha256"] = fingerprints(cfg)
    text = json.dumps(flat, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def data_fingerprint(cfg: DictConfig) -> str | None:
    """The fingerprint of the user's own data, made once a command; None of data that are the same for everybody."""
    name, known = str(OmegaConf.select(cfg, "data.name")), context.current().fingerprints
    place = PLACES.get(name)
    if place is None:
        return None
    key = (name, str(Path(str(OmegaConf.select(cfg, place))).absolute()))
    if key not in known:
        known[key] = fingerprint(name, {place.removeprefix("data."): key[1]})
    return known[key]

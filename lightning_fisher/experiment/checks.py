"""Refuse a config that cannot work, before anything is created: types, ranges, and what must fit together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.experiment.errors import ConfigError, did_you_mean, listing
from lightning_fisher.experiment.options import defaults
from lightning_fisher.experiment.run_name import flat_config

# Options of several types: their own constructors check them.
SEVERAL_TYPES = ("reg.start", "trainer.devices", "trainer.precision", "trainer.limit_", "model.milestones")


@dataclass(frozen=True)
class Allowed:
    """What an option may be: a predicate, and the words for it."""

    test: Callable[[Any], bool]
    words: str


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def at_least(low: int, or_null: bool = False) -> Allowed:
    """An integer with a lower bound."""
    words = f"an integer of at least {low}" + (" or null" if or_null else "")
    return Allowed(lambda v: (or_null and v is None) or (_is_int(v) and v >= low), words)


def one_of(*choices: str) -> Allowed:
    """One of a few words."""
    return Allowed(lambda v: v in choices, listing(choices))


RULES: dict[str, Allowed] = {
    "seed": at_least(0),
    "metric.num_subsets": at_least(1),
    "metric.subset_size": at_least(2),
    "metric.logit_norm": Allowed(lambda v: v is None or (_is_number(v) and v > 0), "a positive number or null"),
    "metric.batch_norm": one_of("eval", "batch"),
    "metric.chunk_size": at_least(2, or_null=True),
    "metric.seed": at_least(0),
    "metric.every_n_validations": at_least(1, or_null=True),
    "metric.at_end": one_of("all", "gamma", "none"),
    "model.max_epochs": at_least(1),
    "model.batch_size": at_least(1),
    "data.batch_size": at_least(1),
    "trainer.max_epochs": at_least(1),
    "trainer.accumulate_grad_batches": at_least(1),
    "trainer.check_val_every_n_epoch": at_least(1),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.gradient_clip_val": Allowed(lambda v: v is None or (_is_number(v) and v >= 0), "a number >= 0 or null"),
}

TYPE_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a node",
}


def _has_type_of(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return _is_int(value)
    if isinstance(default, float):
        return _is_number(value)
    return isinstance(value, type(default))


def refuse(key: str, allowed: str, value: Any) -> ConfigError:
    """Make the error of an option: its name, what is allowed, what came."""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return ConfigError(f"Expected option `{key}` to be {allowed}, but got `{shown}`.")


def check_config(cfg: DictConfig, overrides: list[str]) -> None:
    """Check types and ranges of a composed config.

    A value must have the type its option has by default, where the default is not null.

    Args:
        cfg: the composed config.
        overrides: the command's overrides; those that choose groups give the defaults to compare with.

    Raises:
        ConfigError: naming the first option that is wrong, what it may be, and what it is.
    """
    values, before = flat_config(cfg), flat_config(defaults(overrides))
    for key in values:
        if key not in before and (
            key.startswith("metric.") or key.split(".")[0] not in {k.split(".")[0] for k in before}
        ):
            raise ConfigError(f"Unknown option `{key}`.{did_you_mean(key, before)}")
    for key, value in values.items():
        if key in RULES:
            if not RULES[key].test(value):
                raise refuse(key, RULES[key].words, value)
            continue
        default = before.get(key)
        if default is None or value is None or key.startswith(SEVERAL_TYPES) or value == default:
            continue
        if not _has_type_of(value, default):
            raise refuse(key, TYPE_WORDS.get(type(default), type(default).__name__), value)
    if cfg.stop is not None and not OmegaConf.is_dict(cfg.stop):
        raise refuse("stop", "null or a callback (`_target_` and its arguments)", cfg.stop)
    _check_sub_batches(cfg)


def _check_sub_batches(cfg: DictConfig) -> None:
    """Every sub-batch needs a sample, in one process: M at most the batch size."""
    parts = OmegaConf.select(cfg, "reg.num_sub_batches")
    batch = OmegaConf.select(cfg, "data.batch_size")
    if _is_int(parts) and _is_int(batch) and parts > batch:
        raise refuse("reg.num_sub_batches", f"at most data.batch_size={batch}", parts)


def check_data(cfg: DictConfig, num_train: int) -> None:
    """Check what depends on the size of the training set.

    Args:
        cfg: the composed config.
        num_train: number of training samples that the metrics are measured on.

    Raises:
        ConfigError: if a subset needs more samples than there are.
    """
    size = cfg.metric.subset_size
    measured = cfg.metric.at_end != "none" or cfg.metric.every_n_validations is not None
    if measured and size > num_train:
        raise refuse("metric.subset_size", f"at most the {num_train} training images", size)

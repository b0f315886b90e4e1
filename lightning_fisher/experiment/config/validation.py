"""Refuse a config that cannot work, before anything is created: names, types, ranges, and what must fit together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.arguments import is_finite_number, is_integer, suggestion
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment import context
from lightning_fisher.experiment.config.compose import config_groups, defaults, flatten, parents
from lightning_fisher.experiment.config.config_hash import flat_config
from lightning_fisher.experiment.config.constraints import RULES
from lightning_fisher.experiment.config.error_messages import did_you_mean

# Nodes that take no further options; those of a class are checked by its constructor.
CLOSED = ("", "metric", "model", "score")
# Passed on to a class of another library, which has its own defaults: may be deleted, or null.
FOREIGN = ("trainer.", "model.optimizer.", "model.net.", "model.scheduler", "logger.", "callbacks.")
NODE_OR_NULL = ("score.kwargs",)  # null by default, otherwise a node of any names
OURS = ("callbacks", "logger", "plugins", "default_root_dir", "use_distributed_sampler")  # of the trainer

TYPE_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a node",
}
JUDGED = ("trainer.",)  # by its constructor: of which types, too
SEVERAL_TYPES = ("reg.start",)  # their own constructors check them
# Of one type, or one word.
OR_WORD: dict[str, tuple[Any, str]] = {
    "reg.adaptive": (False, "weights"),
    "reg.norm": (0.0, "inf"),
}
TOLD = ("reg.", "data.name", "data.augmentation")  # their constructors list what they may be instead of null


def _has_type_of(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return is_integer(value)
    if isinstance(default, float):
        return is_finite_number(value)
    return isinstance(value, type(default))


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def refuse(key: str, allowed: str, value: Any, choices: Iterable[str] = ()) -> ConfigError:
    """Make the error of an option: its name, what is allowed, the value received, and which of a few words is near."""
    near = suggestion(value, choices)
    if isinstance(value, Sequence) and not isinstance(value, str) and value and "list" not in allowed:
        near = f" `-m {key}={','.join(map(shown, value))}` runs one job for each."
    return ConfigError(f"Expected option `{key}` to be {allowed}, but got `{shown(value)}`.{near}")


def check_config(cfg: DictConfig, overrides: list[str], values: dict[str, Any] | None = None) -> None:
    """Check names, types and ranges of a composed config.

    A value must have the type its option has by default, where the default is not null.

    Args:
        cfg: the composed config.
        overrides: the command's overrides; those that choose groups give the defaults to compare with.
        values: those of the config (`flat_config`), where they are known.

    Raises:
        ConfigError: naming the first option that is wrong, what it may be, and what it is.
    """
    before, usual_raw, nodes = _default_values(overrides)
    raw = unresolved(cfg)
    _check_nodes(raw, nodes)  # before anything that refers to them is resolved
    values = flat_config(cfg) if values is None else values
    _check_names(values, {*before, *nodes})
    _check_present(cfg, values, before, nodes)
    there = {*values, *parents(values)}
    for key, rule in RULES.items():
        value = values[key] if key in values else OmegaConf.select(cfg, key) if key in there else None
        if key in there and not rule.test(value):
            raise refuse(key, rule.words, value, rule.choices)
    for key, default in before.items():
        value = values.get(key)
        referring = isinstance(raw.get(key), str) and "${" in raw[key] and raw[key] == usual_raw[key]
        if key in RULES or key not in values or default is None or value == default or referring:
            continue  # what it refers to is checked under its own name
        if key.startswith(JUDGED) and not isinstance(default, bool):
            continue
        default, word = OR_WORD.get(key, (default, None))
        if word is not None and value == word:
            continue
        allowed = TYPE_WORDS.get(type(default), type(default).__name__) + (f" or {word}" if word else "")
        if value is None and not key.startswith((*FOREIGN, *TOLD)):
            raise refuse(key, allowed, value)
        if value is not None and not key.startswith(SEVERAL_TYPES) and not _has_type_of(value, default):
            raise refuse(key, allowed, value, [word] if word is not None else [])
    if cfg.stop is not None and not OmegaConf.is_dict(cfg.stop):
        raise refuse("stop", "null or a callback (`_target_` and its arguments)", cfg.stop)
    _check_sub_batches(cfg)
    _check_optimizer(cfg, overrides)


def _default_values(overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The defaults under the group choices of a command, resolved and not, and their nodes; made once a choice."""
    usual, known = defaults(overrides), context.current().default_values
    if id(usual) not in known:
        before = flat_config(usual)
        known[id(usual)] = (usual, before, unresolved(usual), parents(before))  # kept with the config, whose id it is
    return known[id(usual)][1:]


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """The values of a config as they are written, flat, without Hydra's own."""
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    return flatten({key: value for key, value in container.items() if key != "hydra"})


def _check_optimizer(cfg: DictConfig, overrides: list[str]) -> None:
    """One optimizer: a method that is one takes the place of the recipe's, not of another that was asked for."""
    target = str(OmegaConf.select(cfg, "reg._target_"))
    if target.startswith("lightning_fisher.experiment.methods.Use") and target.endswith("SGD"):
        given = [o for o in overrides if o.startswith(("optimizer=", "model.optimizer.")) and o != "optimizer=recipe"]
        if given:
            key, _, value = given[0].partition("=")
            raise ConfigError(
                f"Expected no option `{key}` with {target.rpartition('.')[2][3:]}, which is an optimizer itself, but "
                f"got `{value}`; set the options of `reg`, such as reg.lr."
            )


def _check_nodes(values: dict[str, Any], nodes: list[str]) -> None:
    """What has options below it keeps them."""
    for node in nodes:
        if node in values and not (values[node] is None and node in ("model.scheduler", "stop", "study", "comparison")):
            groups = config_groups()
            group = next((g for g in (node.replace(".", "/"), node.rpartition(".")[2]) if g in groups), "")
            choices = groups.get(group, [])
            if values[node] in choices:
                raise refuse(node, f"a node (`{group}={values[node]}` chooses one)", values[node])
            how = f"choose one, such as `{group}={choices[0]}`, or " if choices else ""
            raise refuse(node, f"a node: {how}set an option of it", values[node])


def _check_names(values: dict[str, Any], known: set[str]) -> None:
    """No option that nothing reads."""
    closed = CLOSED if values.get("reg._target_") else (*CLOSED, "reg")
    for key in values:
        new = next((name for name in (*parents([key]), key) if name not in known), None)
        if new is None:
            continue
        parent, _, name = new.rpartition(".")
        if key.startswith("callbacks."):  # of any name
            if f"{'.'.join(key.split('.')[:2])}._target_" not in values:
                raise refuse(key, "in a node with a `_target_`, the class of a callback", values[key])
            continue
        if parent in closed:
            raise ConfigError(f"Unknown option `{key}`.{did_you_mean(key, known)}")
        if parent == "trainer" and name in OURS:
            raise ConfigError(f"Expected no option `{key}`, which is set by the program itself.")
        if parent == "logger" and new == key:
            raise refuse(key, "a node with a `_target_`", values[key])


def _check_present(cfg: DictConfig, values: dict[str, Any], before: dict[str, Any], nodes: list[str]) -> None:
    """Options are set, not deleted, and their values no nodes."""
    for key in before:
        if key in values or key.startswith(FOREIGN):
            continue
        if key in NODE_OR_NULL and OmegaConf.is_dict(OmegaConf.select(cfg, key)):
            continue
        if any(value.startswith(f"{key}.") for value in values):
            if before[key] is None:
                continue  # no node by default, such as `stop`
            raise refuse(key, TYPE_WORDS.get(type(before[key]), "a value"), OmegaConf.select(cfg, key))
        there = {*values, *parents(values)}
        gone = next(name for name in (*parents([key]), key) if name not in there)
        how = f"choose another, such as `{gone}=none`," if gone == "reg" else "set it"
        raise ConfigError(f"Expected option `{gone}` to be there, but it was deleted; {how} instead.")


def _check_sub_batches(cfg: DictConfig) -> None:
    """Every sub-batch needs a sample, in one process: M at most the batch size."""
    parts = OmegaConf.select(cfg, "reg.num_sub_batches")
    batch = OmegaConf.select(cfg, "data.batch_size")
    if is_integer(parts) and is_integer(batch) and parts > batch:
        raise refuse("reg.num_sub_batches", f"at most data.batch_size={batch}", parts)


def check_data(cfg: DictConfig, num_train: int) -> None:
    """Check what depends on the number of images that are measured.

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


def check_epoch(cfg: DictConfig, sizes: dict[str, int], world_size: int) -> None:
    """Check what depends on the number of images that are trained on.

    Args:
        cfg: the composed config.
        sizes: number of images by the name of the limit: ``train``, ``val``, ``test``.
        world_size: number of processes.

    Raises:
        ConfigError: if a batch, or an epoch, would have too few samples.
    """
    images = sizes["train"]
    if images < 2:
        raise refuse("data.train_size", "at least 2: batch-norm has no statistics of one image", images)
    parts = OmegaConf.select(cfg, "reg.num_sub_batches")
    largest = min(cfg.data.batch_size, math.ceil(images / world_size))
    if OmegaConf.select(cfg, "reg._target_") and is_integer(parts) and parts // world_size > largest:
        raise refuse("reg.num_sub_batches", f"at most {largest * world_size}, the images of a batch", parts)
    for name, size in sizes.items():
        limit = OmegaConf.select(cfg, f"trainer.limit_{name}_batches")
        batches = math.ceil(size / world_size / cfg.data.batch_size)
        if isinstance(limit, float) and 0 < limit * batches < 1:
            raise refuse(f"trainer.limit_{name}_batches", f"at least 1/{batches}: one batch of {batches}", limit)

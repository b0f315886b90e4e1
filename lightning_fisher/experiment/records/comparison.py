"""The comparison of methods: what its runs try, and what they take from runs that are complete.

A run of ``experiment=methods`` is one of three kinds, by ``comparison.job``: ``choose3`` tries the fourth value of the
method's own parameter, with validation images; ``epochs7`` and ``evaluations7`` train with the value of the least
validation error and seed 7, for as many epochs as the others, or as many gradient evaluations.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.result import find_rows

CHOOSING_SEED = 1000  # none of those that are compared
KINDS = ("choose", "epochs", "evaluations")


def job_of(comparison: DictConfig) -> tuple[str, int]:
    """The kind of a run, and its number.

    Raises:
        ConfigError: if it is none of these.
    """
    found = re.fullmatch(rf"({'|'.join(KINDS)})(\d+)", str(comparison.job))
    if found is None:
        raise ConfigError(
            "Expected option `comparison.job` to be choose, epochs or evaluations with a number (choose0), "
            f"but got `{comparison.job}`."
        )
    return found[1], int(found[2])


def takes_from_others(root: DictConfig) -> bool:
    """Whether a run takes the value of its parameter from runs that choose one.

    Raises:
        ConfigError: if ``comparison.job`` is none of the kinds.
    """
    node = OmegaConf.select(root, "comparison")
    return node is not None and "job" in node and job_of(node)[0] != "choose" and len(list(node.grid)) > 1


def compared(what: str, *, _root_: DictConfig) -> Any:
    """What a run of the comparison takes: ``${compared:value}``, ``${compared:seed}``, ``${compared:epochs}``.

    Raises:
        ConfigError: if the runs that choose a value aren't complete.
    """
    node = _root_.comparison
    kind, number = job_of(node)
    if what == "seed":
        return CHOOSING_SEED if kind == "choose" else number
    if what == "epochs":
        epochs = int(node.epochs)
        return max(2, round(node.budget * epochs / node.cost)) if kind == "evaluations" else epochs
    grid = list(node.grid)
    if kind == "choose":
        return grid[number % len(grid)]
    return grid[0] if len(grid) == 1 else chosen(_root_, grid)


def chosen(root: DictConfig, grid: list[Any]) -> Any:
    """The value of the least validation error among the complete runs that choose, the first of several.

    Raises:
        ConfigError: if not all values have been tried.
    """
    folder, node = sweep_folder(root), root.comparison
    noise = OmegaConf.select(root, "data.label_noise")
    errors: dict[int, float] = {}
    for _, row in find_rows(folder):
        config = row.get("config", {})
        same = config.get("comparison.name") == node.name and config.get("data.label_noise") == noise
        job = str(config.get("comparison.job"))
        if same and job.startswith("choose") and row.get("val_error") is not None:
            errors[int(job.removeprefix("choose")) % len(grid)] = row["val_error"]
    missing = [grid[i] for i in range(len(grid)) if i not in errors]
    if missing:
        raise ConfigError(
            f"Expected a complete run for every value of {node.parameter} that is tried with {node.name}, but "
            f"`{folder}` has none for {missing}: run comparison.job=choose0,... first."
        )
    return grid[min(errors, key=lambda i: (errors[i], i))]


def sweep_folder(root: DictConfig) -> Path:
    """The folder of the sweep that a run belongs to.

    Raises:
        ConfigError: if it belongs to none.
    """
    hydra: Any = root.get("hydra") or HydraConfig.get()
    if str(hydra.mode) == "RunMode.MULTIRUN":
        return Path(hydra.sweep.dir)
    folder = OmegaConf.to_container(hydra, resolve=False)["run"]["dir"]  # type: ignore[index, call-overload]
    if "${" in folder:
        raise ConfigError(
            "Expected `-m` with comparison.job=epochs0 and the like, which take the value that a sweep chose."
        )
    return Path(folder).parent

"""The names that configs are made of: of runs, of sweeps, of the help page; each a resolver of OmegaConf."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.data.sources.files import usual_validation_size
from lightning_fisher.experiment.config.config_hash import config_hash, is_hashed
from lightning_fisher.experiment.config.help_page import help_page
from lightning_fisher.experiment.config.score_request import is_scoring, labels
from lightning_fisher.experiment.records import run_folders
from lightning_fisher.experiment.records.comparison import compared

UNNAMED = ("logger", "debug", "restart", "data.download", "data.data_dir")
STUDY = ("experiment", "size")  # named where they vary
SKIPPED = (*UNNAMED, *STUDY)


def slug(overrides: list[str], skip: Sequence[str], fixed: Sequence[str] = ()) -> str:
    """Make a readable folder name of overrides: ``confusion_size=200_seed=1``; at most 80 characters.

    Args:
        overrides: of the run.
        skip: options and groups that are left out, with all below them.
        fixed: options and groups that are left out, by themselves: ``data`` leaves ``data.train_size``.
    """
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in fixed or key in skip or key.split(".")[0] in skip or not is_hashed(key, value):
            continue
        if key == "data.path":  # the content is what counts, not the place
            value = PurePath(value.strip("'\"")).stem
        parts.append(f"{key.rpartition('.')[2]}={value}")
    return re.sub(r"[^\w=.+-]+", "-", "_".join(parts)).strip("-")[:80]


def run_name(folder: str = "", *, _root_: DictConfig) -> str:
    """Name a run by its overrides and its config hash, the same for the same command.

    Of a job of a sweep, only what the sweep varies is in the name. A run of the same hash that is in the folder already
    keeps its name, whatever the command looks like: ``data.path=a.npz`` and ``data.path=./a.npz`` are one run.

    Used as ``${run_name:FOLDER}`` in ``hydra.run.dir`` and ``hydra.sweep.subdir``.

    Args:
        folder: in which the run's own stands; empty: it is not looked into.
    """
    overrides = [str(o) for o in _root_.hydra.overrides.task]
    if is_scoring(_root_):
        named = re.sub(r"[^\w=.+-]+", "-", "-vs-".join(labels(_root_)))[:80]
        overrides = [o for o in overrides if not o.startswith(("score.checkpoint=", "score.module="))]
        name = "_".join(filter(None, (named, slug(overrides, SKIPPED))))
        return f"{name}-{config_hash(_root_)}"
    fixed = OmegaConf.select(_root_, "hydra.job.config.override_dirname.exclude_keys") or []
    sweeps = OmegaConf.select(_root_, "hydra.mode") == RunMode.MULTIRUN
    name = (slug(overrides, UNNAMED, fixed) if sweeps else "") or slug(overrides, SKIPPED) or "default"
    digest = config_hash(_root_)
    return run_folders.of_hash(Path(folder), digest, f"{name}-{digest}") if folder else f"{name}-{digest}"


def run_group(*, _root_: DictConfig) -> str:
    """Name the folder that runs stand in: ``score``, or the data set and the network.

    Used as ``${run_group:}`` in ``hydra.run.dir``.
    """
    # Hydra makes the folder before the names are checked.
    return "score" if is_scoring(_root_) else re.sub(r"[^\w=.+-]+", "-", f"{_root_.data.name}-{_root_.model.name}")


def sweep_name(*, _root_: DictConfig) -> str:
    """Name the folder of a sweep: the study and its size, ``score``, or the data set and the network.

    Used as ``${sweep_name:}`` in ``hydra.sweep.dir``.
    """
    study = OmegaConf.select(_root_, "study.name")
    size = OmegaConf.select(_root_, "hydra.runtime.choices.size")
    scoring = any(str(o).startswith(("score.checkpoint=", "score.module=")) for o in _root_.hydra.overrides.task)
    return f"{study}-{size}" if study else "score" if scoring else run_group(_root_=_root_)


def regime_adapted(epochs: int, batch_size: int, base: int) -> int:
    """As many epochs as make the steps of ``epochs`` with batches of ``base`` samples (Hoffer et al. 2017, Sec. 5)."""
    return max(1, round(epochs * batch_size / base))


def register_resolvers() -> None:
    """Register the names above, and the help page, with OmegaConf."""
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("run_group", run_group, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("ratio", lambda a, b: float(a) / float(b), replace=True)
    OmegaConf.register_new_resolver("regime_adapted", regime_adapted, replace=True)
    OmegaConf.register_new_resolver("validation_size", usual_validation_size, replace=True)
    OmegaConf.register_new_resolver("compared", compared, replace=True)
    OmegaConf.register_new_resolver("help_page", help_page, replace=True)

"""What is scored: a network with its weights, the images it was trained with, and where both come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lightning_fisher.data.sources.fingerprint import fingerprint
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.compose import CONFIG_DIR, flatten
from lightning_fisher.experiment.config.config_hash import PLACES
from lightning_fisher.experiment.config.error_messages import listing, name_option, one_line
from lightning_fisher.experiment.config.score_request import label, run_folder, sha256, weights_file
from lightning_fisher.experiment.records import run_folders
from lightning_fisher.experiment.records.result import read_row
from lightning_fisher.experiment.scoring.import_path import make_module
from lightning_fisher.experiment.scoring.weights import load, read_checkpoint


@dataclass
class Subject:
    """A network to score.

    Attributes:
        name: short, for tables and figures.
        net: with its weights.
        network: what it is: the name of a model, or an import path.
        data: the ``data`` node of its images.
        checkpoint: the file of its weights; None: as its constructor made it.
        digest: SHA-256 of the file.
        epochs: it was trained for, where the file says so.
        choices: group choices of its run, or of the command.
        overrides: overrides of its run.
        config: the options of its run, flat; empty outside a run folder.
    """

    name: str
    net: nn.Module
    network: str
    data: DictConfig
    checkpoint: Path | None
    digest: str | None
    epochs: int | None
    choices: dict[str, Any]
    overrides: list[str]
    config: dict[str, Any]


def make_subject(cfg: DictConfig, path: Path | None, overrides: list[str], choices: dict[str, Any]) -> Subject:
    """Find the network, the weights and the images of one checkpoint.

    The network is ``score.module``; else that of the run the checkpoint lies in, unless the command sets ``model``;
    else that of ``model``. The images are those of the run, with the ``data`` options of the command set on top;
    outside a run, or where the command chooses ``data=``, those of the command.

    Args:
        cfg: the composed config.
        path: a run folder or a file of weights; None for a network as its constructor makes it.
        overrides: of the command.
        choices: of the command.

    Raises:
        ConfigError: in one line, if anything is missing or doesn't fit.
    """
    file = weights_file(path, cfg.score.which) if path is not None else None
    folder = run_folder(file) if file is not None else None
    recorded = _read_config(folder) if folder is not None else None
    set_by_command = {override.lstrip("+~").partition("=")[0] for override in overrides}
    data = _data(cfg, recorded, folder, set_by_command)
    if cfg.score.module is not None:
        network, net = str(cfg.score.module), make_module(cfg.score.module, cfg.score.kwargs)
    else:
        own = any(key == "model" or key.startswith(("model.", "model/")) for key in set_by_command)
        node = cfg.model if recorded is None or own else recorded.model
        if node is not cfg.model:
            _refuse_unknown_targets(node.net, folder)
        try:
            network, net = str(node.name), instantiate(node.net)
        except Exception as error:
            raise ConfigError(name_option("model.net", error.__cause__ or error)) from error
    epochs = None
    if file is not None:
        checkpoint = read_checkpoint(file)
        load(net, checkpoint, file, cfg.score.prefix)
        epochs = _epochs(checkpoint)
    row = read_row(folder) if folder is not None else None
    return Subject(
        name=label(path) if path is not None else network,
        net=net,
        network=network,
        data=data,
        checkpoint=file,
        digest=sha256(file) if file is not None else None,
        epochs=epochs,
        choices=row["choices"] if row is not None else choices,
        overrides=_recorded_overrides(folder),
        config=flatten(OmegaConf.to_container(recorded, resolve=True)) if recorded is not None else {},
    )


def _read_config(folder: Path) -> DictConfig:
    try:
        config = OmegaConf.load(folder / "config.yaml")
        if not isinstance(config, DictConfig) or not {"model", "data"} <= set(config):
            raise ValueError("it has no model and data")
    except Exception as error:
        raise ConfigError(
            f"Expected `{folder / 'config.yaml'}` to be the config of a run: {one_line(error)}."
        ) from error
    return config


def _recorded_overrides(folder: Path | None) -> list[str]:
    file = folder / "overrides.yaml" if folder is not None else None
    return [str(one) for one in OmegaConf.load(file)] if file is not None and file.is_file() else []


def _data(cfg: DictConfig, recorded: DictConfig | None, folder: Path | None, set_by_command: set[str]) -> DictConfig:
    if recorded is None or "data" in set_by_command:
        return cfg.data
    data = OmegaConf.create(OmegaConf.to_container(recorded.data, resolve=True))
    assert isinstance(data, DictConfig)
    _refuse_unknown_targets(data, folder)
    for key in set_by_command:
        if key.startswith("data."):
            OmegaConf.update(data, key.removeprefix("data."), OmegaConf.select(cfg, key), force_add=True)
    assert folder is not None
    _check_content(data, folder, set_by_command)
    return data


def _check_content(data: DictConfig, folder: Path, set_by_command: set[str]) -> None:
    """A run is scored on the images it was trained with, unless the command names others, which is said.

    Raises:
        ConfigError: if their content has changed since.
    """
    name, before = str(data.get("name")), run_folders.data_of(folder)
    place = PLACES.get(name, "").removeprefix("data.")
    now = fingerprint(name, {place: data.get(place)}) if place and before is not None else None
    if now is None or now == before:  # what is missing is said when it is read
        return
    if f"data.{place}" in set_by_command:
        print(f"`{data.get(place)}` holds other images than the run `{folder}` was trained with.", flush=True)
        return
    raise ConfigError(
        f"Expected `{data.get(place)}` to hold the images that the run `{folder}` was trained with, but its "
        f"content has changed since: put them back, or score it on these with +data.{place}={data.get(place)}."
    )


def _epochs(checkpoint: Any) -> int | None:
    epoch = checkpoint.get("epoch") if isinstance(checkpoint, Mapping) else None
    return epoch + 1 if isinstance(epoch, int) else None


def _targets(node: Any) -> set[str]:
    if isinstance(node, Mapping):
        own = {str(node["_target_"])} if "_target_" in node else set()
        return own.union(*(_targets(value) for value in node.values()))
    return set().union(*map(_targets, node)) if isinstance(node, (list, tuple)) else set()


def _refuse_unknown_targets(node: DictConfig, folder: Path | None) -> None:
    """A run folder may come from anywhere: of what its config names, only what ``conf/`` names too is called.

    Raises:
        ConfigError: naming what is not.
    """
    known = {
        target
        for group in ("model", "data")
        for file in (CONFIG_DIR / group).glob("*.yaml")
        for target in re.findall(r"_target_: *([\w.]+)", file.read_text(encoding="utf-8"))
    }
    unknown = sorted(_targets(OmegaConf.to_container(node, resolve=True)) - known)
    if unknown:
        raise ConfigError(
            f"Expected the config of the run `{folder}` to name what conf/ names too, but got `{unknown[0]}`: if you "
            "trust it, name the network with score.module=... and score.kwargs={...}, and the images with data=...."
        )


def check_same_images(first: Subject, second: Subject) -> None:
    """Two networks are compared on the same images.

    Raises:
        ConfigError: naming the options in which their data differ.
    """
    one, other = (dict(OmegaConf.to_container(s.data, resolve=True)) for s in (first, second))  # type: ignore[arg-type]
    ignored = ["batch_size", "augmentation", "num_workers", "download"]  # they don't move the images that are measured
    drawn = any(
        data.get("train_size") or data.get("confusion_size") or data.get("label_noise") for data in (one, other)
    )
    if not drawn:  # the seed of the run chooses none of the images and labels
        ignored.append("seed")
    contents = [fingerprint(str(data.get("name")), data) for data in (one, other)]
    if one.get("name") in ("cifar10", "cifar100") or (contents[0] is not None and contents[0] == contents[1]):
        ignored += ["path", "data_dir"]
    keys = [k for k in dict.fromkeys([*one, *other]) if k not in ignored and one.get(k) != other.get(k)]
    if keys:
        differing = listing(f"data.{key} ({one.get(key)} and {other.get(key)})" for key in keys)
        raise ConfigError(
            f"Expected option `score.checkpoint` to name two networks trained on the same images, but they differ in "
            f"{differing}: set these options to compare both on one set."
        )

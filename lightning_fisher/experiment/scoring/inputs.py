"""What scoring needs besides the network: its device, its images, the names of their classes, and that they fit."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import one_line
from lightning_fisher.experiment.config.validation import refuse
from lightning_fisher.experiment.scoring.network import Subject
from lightning_fisher.experiment.training.preflight import load_data

CLASSES = {"cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]}


def device(accelerator: str) -> torch.device:
    """The device of ``trainer.accelerator``; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: if there is no such device, or it does not know float64.
    """
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    raise refuse("trainer.accelerator", "auto, cpu or (where there is a CUDA device) gpu when scoring", accelerator)


def load_images(cfg: DictConfig, subject: Subject) -> ImageDataModule:
    """Load the images a network is scored on.

    Raises:
        ConfigError: if they are missing or too few.
    """
    data = instantiate(subject.data)
    load_data(data, cfg)
    return data


def check_network(subject: Subject, data: ImageDataModule) -> None:
    """Refuse a network that does not take the images or does not tell their classes.

    Raises:
        ConfigError: in one line.
    """
    parameters = [p for p in subject.net.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(f"Expected the network {subject.network} to have trainable parameters, but it has none.")
    pixels, _ = data.clean_set.__getitems__([0, min(1, len(data.clean_set) - 1)])
    wanted = f"Expected the network {subject.network} to give {data.num_classes} logits for an image of shape "
    wanted += f"{list(pixels.shape[1:])} (data={data.name}), but "
    try:
        with torch.no_grad():
            logits = subject.net(data.normalization(pixels.to(parameters[0].device)))
    except Exception as error:  # whatever a foreign network raises
        raise ConfigError(f"{wanted}it raised {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (len(pixels), data.num_classes):
        got = f"shape {list(logits.shape)[1:]}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"{wanted}it gave {got}: choose other data=... or score.kwargs={{...}}.")


def class_names(cfg: DictConfig, data: ImageDataModule) -> list[str]:
    """The names of the classes: given, known, or their numbers.

    Raises:
        ConfigError: if there are not as many names as classes.
    """
    if cfg.score.class_names is None:
        return CLASSES.get(str(data.name), [str(k) for k in range(data.num_classes)])
    names = [str(name) for name in cfg.score.class_names] if OmegaConf.is_list(cfg.score.class_names) else []
    if len(names) != data.num_classes:
        raise refuse("score.class_names", f"a list of {data.num_classes} names", cfg.score.class_names)
    return names

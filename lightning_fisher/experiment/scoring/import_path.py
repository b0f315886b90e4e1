"""A network by import path: somebody else's, made as its constructor makes it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import one_line


def make_module(path: str, kwargs: DictConfig | None) -> nn.Module:
    """Make the network of an import path: a class or function that is called, or a module that exists.

    Modules of the current folder can be imported.

    Raises:
        ConfigError: if it cannot be imported or made, or is no network.
    """
    if kwargs is not None and not OmegaConf.is_dict(kwargs):
        raise ConfigError(f"Expected option `score.kwargs` to be {{name: value, ...}} or null, but got `{kwargs}`.")
    arguments: Any = OmegaConf.to_container(kwargs, resolve=True) if kwargs is not None else {}
    found = _locate(str(path))
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ConfigError(f"Expected option `score.module` to be a class or function, but got `{path}`.")
        found = _call(found, arguments, path)
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"Expected option `score.module` to make a torch.nn.Module, but `{path}` gave {type(found).__name__}."
        )
    return found


def _call(make: Callable[..., Any], arguments: dict[str, Any], path: str) -> Any:
    try:
        return make(**arguments)
    except Exception as error:  # whatever a constructor raises
        raise ConfigError(
            f"Expected options `score.module` and `score.kwargs` to make a network, but `{path}` with "
            f"{arguments or 'no arguments'} raised {type(error).__name__}: {one_line(error)}"
        ) from error


def _locate(path: str) -> Any:
    """Follow a dotted path: the attribute of what was found so far, else a module below it."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        first, *names = path.split(".")
        found: Any = importlib.import_module(first)
        for depth, name in enumerate(names, start=1):
            if not hasattr(found, name) and isinstance(found, ModuleType) and hasattr(found, "__path__"):
                importlib.import_module(".".join([first, *names[:depth]]))
            found = getattr(found, name)
        return found
    except Exception as error:  # whatever importing somebody's module raises
        raise ConfigError(
            f"Expected option `score.module` to be an import path such as torchvision.models.resnet18, "
            f"but got `{path}` ({one_line(error)})."
        ) from error
    finally:
        if added:
            sys.path.remove(here)

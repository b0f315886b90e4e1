"""Packages that not every installation has: what is missing is said with the command that installs it."""

from __future__ import annotations

import importlib
import importlib.util
import re
from types import ModuleType

from lightning_fisher.exceptions import LightningFisherError

EXPERIMENTS = 'pip install "lightning-fisher[experiments]"'
COMMANDS = {
    **dict.fromkeys(
        ("filelock", "hydra", "matplotlib", "omegaconf", "rich", "scipy", "sklearn", "torchvision", "wandb"),
        EXPERIMENTS,
    ),
    **dict.fromkeys(("tensorboard", "tensorboardX"), EXPERIMENTS),
    "PIL": "pip install pillow",
    **dict.fromkeys(("cleanlab", "nbclient", "nbformat"), 'pip install "lightning-fisher[tutorials]"'),
    **{name: f"pip install {name}" for name in ("timm", "transformers", "schedulefree", "safetensors", "accelerate")},
    "torch_geometric": "pip install torch-geometric",
    "pytorch_optimizer": "pip install pytorch-optimizer",
    "segmentation_models_pytorch": "pip install segmentation-models-pytorch",
}
"""By the name that is imported."""

LAUNCHERS = {
    "joblib": 'pip install "lightning-fisher[joblib]"',
    **dict.fromkeys(("submitit_local", "submitit_slurm"), 'pip install "lightning-fisher[slurm]"'),
    **dict.fromkeys(("ray", "ray_aws"), 'pip install "lightning-fisher[ray]"'),
}
"""By the choice of ``hydra/launcher``."""


class MissingPackageError(LightningFisherError, ImportError):
    """A package that is needed is not installed."""


def missing_package(error: BaseException | None) -> str | None:
    """Say in a sentence which package is missing, and the command that installs it.

    Args:
        error: what importing or making something raised; its causes are looked at, too.

    Returns:
        The sentence; None where no package of `COMMANDS` is missing.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MissingPackageError):
            return str(error)
        if isinstance(error, ImportError) and (name := _name(error)) is not None:
            return f"this needs the package `{name}`, which is not installed: {COMMANDS[name]}"
        error = error.__cause__
    return None


def require_package(name: str, what: str) -> ModuleType:
    """Import a package that not every installation has.

    Args:
        name: of the module.
        what: needs it, for the message: "the picture (--images)".

    Raises:
        MissingPackageError: in one line, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        found = _name(error) or name
        command = COMMANDS.get(found, f"pip install {found}")
        raise MissingPackageError(f"{what} needs the package `{found}`, which is not installed: {command}") from error


def _name(error: ImportError) -> str | None:
    """The missing package of an import error; of Lightning's, which name a distribution only, by their text."""
    quoted = re.search(r"[`'](\w+)", str(error))
    name = (error.name or (quoted[1] if quoted else "")).partition(".")[0]
    return name if name in COMMANDS and not _installed(name) else None


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False

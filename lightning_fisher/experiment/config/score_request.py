"""What the command asks to score: nothing (it trains), one network, or two to compare."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.run_folders import CHECKPOINTS

OPTION = "score.checkpoint="


def is_scoring(cfg: DictConfig) -> bool:
    """Whether the command scores instead of training."""
    return any(OmegaConf.select(cfg, f"score.{key}") is not None for key in ("checkpoint", "module"))


def checkpoints(cfg: DictConfig) -> list[Path | None]:
    """The one or two checkpoints to score; None stands for a network as its constructor makes it.

    Raises:
        ConfigError: if it is neither a path nor two.
    """
    given = cfg.score.checkpoint
    paths = list(given) if OmegaConf.is_list(given) else [given]
    if len(paths) not in (1, 2) or not all(isinstance(path, str) or path is given is None for path in paths):
        raise ConfigError(
            "Expected option `score.checkpoint` to be a path, or [path,path] to compare two, "
            f"but got `{given}`; for more, -m score.checkpoint=path,path,... scores one after the other."
        )
    return [None if path is None else Path(path).expanduser() for path in paths]


def weights_file(path: Path, which: str) -> Path:
    """The file of a checkpoint: the path itself, or the one of a run folder.

    Args:
        path: a file, or the folder of a run.
        which: ``"last"`` or ``"best"``, of a folder.

    Raises:
        ConfigError: if there is none.
    """
    file = path / CHECKPOINTS / f"{which}.ckpt" if path.is_dir() else path
    if not file.is_file():
        where = (
            f"the run folder `{path}` has no {CHECKPOINTS}/{which}.ckpt" if path.is_dir() else f"there is no `{path}`"
        )
        raise ConfigError(f"Expected option `score.checkpoint` to be a run folder or a file of weights, but {where}.")
    return file


def run_folder(file: Path) -> Path | None:
    """The run folder that a checkpoint lies in, None where it lies in none."""
    within = Path(os.path.abspath(file)).parent  # by the name it was given: links are not followed
    return within.parent if within.name == CHECKPOINTS and (within.parent / "config.yaml").is_file() else None


def labels(cfg: DictConfig) -> list[str]:
    """Short names of what is scored; also where the request is not sound, for which others have the message."""
    try:
        return [label(path) if path is not None else str(cfg.score.module) for path in checkpoints(cfg)]
    except (ConfigError, OSError):
        return ["score"]


def label(path: Path) -> str:
    """A short name of a checkpoint: that of its run folder, and of the file if it is not the last one."""
    folder = Path(os.path.abspath(path)) if path.is_dir() else run_folder(path) if path.is_file() else None
    if folder is None:
        return path.stem
    return folder.name if path.is_dir() or path.stem == "last" else f"{folder.name}-{path.stem}"


def fingerprints(cfg: DictConfig) -> list[str | None]:
    """SHA-256 of every checkpoint's file, None without one: a changed file is another thing to score."""
    try:
        return [None if p is None else sha256(weights_file(p, str(cfg.score.which))) for p in checkpoints(cfg)]
    except (ConfigError, OSError):
        return []


def sha256(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    stat = file.stat()
    return _sha256(file.resolve(), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _sha256(file: Path, modified: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def quoted_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the paths of ``score.checkpoint=``, so that they may contain ``=`` as our own run folders do.

    Hydra's grammar ends an unquoted value at ``=``. Commas separate paths as before; what is quoted already stays.
    """
    return [OPTION + _quote(a.removeprefix(OPTION)) if a.startswith(OPTION) else a for a in arguments]


def _quote(value: str) -> str:
    if "'" in value or '"' in value or value in ("", "null"):
        return value
    return re.sub(r"[^\[\],]+", lambda path: f"'{path.group().strip()}'", value)

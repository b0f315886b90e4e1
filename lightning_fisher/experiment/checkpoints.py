"""Checkpoints that survive a kill: written aside, then renamed; the one before is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

FOLDER = "checkpoints"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file in the same folder and rename it when it is complete.

    The file that ``last.ckpt`` was before stays as ``previous.ckpt``, so that a run can continue even if the
    newest file is damaged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save so that ``path`` is never half a file."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if target.name == LAST and target.exists():
            os.replace(target, target.with_name(PREVIOUS))
        os.replace(temporary, target)


def checkpoint_callbacks(folder: Path, has_validation: bool) -> list[Callback]:
    """Make the callbacks that keep the last epoch's and, with a validation split, the best checkpoint.

    Args:
        folder: the run folder.
        has_validation: whether there is a validation split to choose the best checkpoint by.
    """
    common: dict[str, Any] = {
        "dirpath": folder / FOLDER,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    callbacks: list[Callback] = [
        ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, every_n_epochs=1, **common)
    ]
    if has_validation:
        callbacks.append(ModelCheckpoint(filename="best", monitor="val_error", mode="min", **common))
    return callbacks


def resumable(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run folder that can be read, or None."""
    for name in (LAST, PREVIOUS):
        path = folder / FOLDER / name
        if path.is_file():
            try:
                torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # whatever a damaged file raises
                print(f"Cannot read {path} ({type(error).__name__}): looking for an older one.", flush=True)
            else:
                return path
    return None

"""Checkpoints of a run: the last epoch's, the one before, and the best."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_fisher.callbacks import AtomicCheckpointIO
from lightning_fisher.experiment.records.run_folders import CHECKPOINTS

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
DAMAGED = "damaged.ckpt"


class RunCheckpointIO(AtomicCheckpointIO):
    """Keep what ``last.ckpt`` was before as ``previous.ckpt``: the run can continue if the newest is damaged."""

    def replace(self, temporary: Path, target: Path) -> None:
        """A kill between the two steps leaves the older file, whole."""
        if target.name == LAST and target.exists():
            os.replace(target, target.with_name(PREVIOUS))
        super().replace(temporary, target)


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint of a run whose folder may be moved or copied and then continued: files go by their names.

    Lightning's own forgets which checkpoint was the best when the folder has another path than before.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave, in the folder as it is now."""
        old, new = state_dict.get("dirpath"), self.dirpath

        def moved(path: Any) -> Any:
            return str(Path(str(new)) / Path(path).name) if path and Path(path).parent == Path(str(old)) else path

        if old is not None and new is not None:
            paths = ("best_model_path", "kth_best_model_path", "last_model_path")
            state_dict = {
                **state_dict,
                "dirpath": str(new),
                **{key: moved(state_dict[key]) for key in paths if key in state_dict},
                "best_k_models": {moved(path): score for path, score in state_dict.get("best_k_models", {}).items()},
            }
        super().load_state_dict(state_dict)


def checkpoint_callbacks(folder: Path, has_validation: bool) -> list[Callback]:
    """Make the callbacks that keep the last epoch's and, with a validation split, the best checkpoint.

    Args:
        folder: the run folder.
        has_validation: whether there is a validation split to choose the best checkpoint by.
    """
    common: dict[str, Any] = {
        "dirpath": folder / CHECKPOINTS,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    last = RunCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, every_n_epochs=1, **common)
    if not has_validation:
        return [last]
    # The best first: the last checkpoint's copy of its state, with which a run continues, then knows this epoch too.
    return [RunCheckpoint(filename="best", monitor="val_error", mode="min", **common), last]


def resumable(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run folder that can be read, or None.

    One that cannot is set aside: the next save would keep it as the previous one, in place of one that can.
    """
    for name in (LAST, PREVIOUS):
        path = folder / CHECKPOINTS / name
        if path.is_file():
            try:
                torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # whatever a damaged file raises
                print(f"Cannot read {path} ({type(error).__name__}): looking for an older one.", flush=True)
                with contextlib.suppress(OSError):  # another process of this run may have been first
                    os.replace(path, path.with_name(DAMAGED))
            else:
                return path
    return None

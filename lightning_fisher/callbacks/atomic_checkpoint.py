"""Checkpoints that survive a kill and a full disk: written aside, then renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file in the same folder and rename it when it is on disk.

    Lightning's own writes to the system's temporary folder and moves the file. Where checkpoints are on another file
    system (a scratch or network drive), the move is a copy over the file that was there: a kill during it, or a full
    disk, leaves neither the old checkpoint nor the new one. With this plugin the old one stays until the new one is
    whole. Remote paths (``s3://…``) are left to Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_fisher.callbacks import AtomicCheckpointIO
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False, accelerator="cpu")
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save so that ``path`` is never half a file.

        Raises:
            OSError: with the path, if it cannot be written; what was there before is still there.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            self.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            cause = _system_error(error)
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(target)) from error
        finally:
            with contextlib.suppress(OSError):  # there is none unless something failed
                temporary.unlink()

    def replace(self, temporary: Path, target: Path) -> None:
        """Put the whole new file in the place of the old one."""
        os.replace(temporary, target)


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said: torch's writer raises an error of its own over it, about positions in a file."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__ or error.__context__
    return error

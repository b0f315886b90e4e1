"""What is said when a command is interrupted, and what is cleared away then."""

from __future__ import annotations

from lightning_fisher.command_line import signals
from lightning_fisher.experiment import context
from lightning_fisher.experiment.records import run_folders
from lightning_fisher.experiment.sweep import job_record


def last_words() -> str:
    """Say what the same command will do."""
    command = context.current()
    folder = command.folder
    if command.leave_sweep() is not None:
        if command.record is not None:
            job_record.end(command.record)
        if folder is not None:
            run_folders.discard(folder)  # where no job had begun
        return "Interrupted. The same command goes on with the jobs that are not complete."
    if folder is not None and any(folder.glob("checkpoints/*.ckpt")):
        return "Interrupted. The same command continues from the last checkpoint."
    if folder is not None:
        run_folders.discard(folder)
    return signals.AGAIN

"""What is complete is shown, not done again: the row of a run, the card of a network. Without the imports of either."""

from __future__ import annotations

from lightning_fisher.experiment import context
from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.config.score_request import checkpoints
from lightning_fisher.experiment.display.terminal import shown
from lightning_fisher.experiment.records.result import complete_row
from lightning_fisher.experiment.records.run_folders import CARD
from lightning_fisher.experiment.training.console import print_row


def show_complete_card(job: Job) -> bool:
    """Print the card of one network if it is complete; whether it is (``restart=true`` asks for another).

    Raises:
        ConfigError: if the command names neither one checkpoint nor two.
    """
    written = job.folder / CARD
    if len(checkpoints(job.cfg)) > 1 or job.cfg.restart or not written.is_file():
        return False
    if complete_row(job.folder, job.config_hash) is None:
        return False
    print(written.read_text(encoding="utf-8").partition("\n## ")[0])
    print(f"card    {shown(written)}\nComplete already; restart=true measures it again.")
    return True


def show_complete_row(job: Job) -> bool:
    """Print the result of a run that is complete; whether it is (``restart=true`` asks for another)."""
    row = None if job.cfg.restart else complete_row(job.folder, job.config_hash)
    if row is not None and context.rank() == 0:
        print_row(row, job.folder, "Complete already; restart=true trains it again.")
    return row is not None

"""The report of a sweep as a run of its own beside those of its jobs, where they were logged to W&B."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_fisher.experiment.report.rows import load_rows, value
from lightning_fisher.experiment.report.write_report import Report
from lightning_fisher.experiment.training.loggers import wandb_mode


def upload(made: Report, runs: Sequence[Path], folder: Path) -> bool:
    """Log the text and the figures of a report, grouped with the runs of its sweep.

    Args:
        made: the report.
        runs: the run folders of the sweep.
        folder: the folder of the sweep.

    Returns:
        Whether there was anything to log to: False if no run used the ``wandb`` logger, or the report has no figure.
    """
    logged = [row for row in load_rows(folder, runs) if value(row, "logger.wandb.project") is not None]
    if not logged or not made.figures:
        return False
    import wandb

    row = logged[0]
    mode = str(value(row, "logger.wandb.mode"))
    group = value(row, "logger.wandb.group") or (row["study"] or {}).get("name")
    run = wandb.init(
        project=value(row, "logger.wandb.project"),
        entity=value(row, "logger.wandb.entity"),
        group=group,
        job_type="report",
        name=f"report {folder.name}",
        dir=str(folder),
        mode=wandb_mode(mode),
    )
    images = {path.stem: wandb.Image(str(path)) for path in made.figures}
    run.log({**images, "report": wandb.Html(f"<pre>{made.text(markdown=False)}</pre>")})
    run.finish()
    return True

"""What a run prints before and after: the plan, and the result row as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fisher.experiment.config.job import Job
from lightning_fisher.experiment.display.terminal import print_pairs, shown
from lightning_fisher.experiment.records.option_names import value_name
from lightning_fisher.experiment.records.quantities import METRICS, QUANTITIES
from lightning_fisher.experiment.records.result import FILE_NAME as ROW
from lightning_fisher.experiment.records.run_folders import FIGURE

if TYPE_CHECKING:  # shows complete rows without the imports of training
    from lightning_fisher.experiment.training.build import Run

TOP5 = "test_error_top5"
SHOWN = (
    "train_loss",
    "train_error",
    "val_error",
    "test_loss",
    "test_error",
    TOP5,
    *METRICS,
    "epochs",
    "stop_reason",
    "fit_seconds",
    "peak_memory_mib",
)


def row_table(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The main values of a row as names and texts."""
    shown = [QUANTITIES[key] for key in SHOWN if row.get(key) is not None and not (key == TOP5 and _few_classes(row))]
    return [(quantity.heading, quantity.text(row[quantity.key], row.get(f"{quantity.key}_std"))) for quantity in shown]


def _few_classes(row: dict[str, Any]) -> bool:
    """Whether a top-5 error says nothing: it is 0."""
    classes = row.get("config", {}).get("data.num_classes")
    return isinstance(classes, int) and classes <= 5


def phases(row: dict[str, Any]) -> str:
    """Say in a sentence which epochs were plain and which regularized."""
    epochs, switch = row["epochs"], row.get("switch_epoch")
    if row["choices"].get("reg") == "none" or not row["config"].get("reg._target_"):
        return f"{epochs} plain epochs, no regularizer"
    if "reg.start" not in row["config"] or "switch_epoch" not in row or not _switches(row):
        return f"{epochs} epochs, {value_name('reg', row['choices'].get('reg'))}"
    if row["config"].get("reg.beta") == 0:
        return f"{epochs} plain epochs (beta 0)"
    if switch is None:
        return f"{epochs} plain epochs; the regularizer never switched on (start={row['config'].get('reg.start')})"
    if switch >= epochs:
        return f"{epochs} plain epochs"
    beta = f"beta {row['config'].get('reg.beta')}".removesuffix(".0")
    drop = ", after the learning rate dropped," if row["config"].get("reg.start") == "first_lr_drop" else ","
    return (
        f"epochs 1-{switch} plain, then{drop} epochs {switch + 1}-{epochs} regularized "
        f"(from step {row['switch_step']}, {beta})"
        if switch
        else f"epochs 1-{epochs} regularized ({beta})"
    )


def _switches(row: dict[str, Any]) -> bool:
    """Whether the method is the regularizer, which has a plain phase."""
    return "reg.beta" in row["config"]


def print_plan(job: Job, run: Run, checkpoint: Path | None) -> None:
    """Print what is about to happen."""
    cfg = job.cfg
    parameters = sum(p.numel() for p in run.module.net.parameters())
    print(f"run folder  {shown(job.folder)}")
    print(
        f"model       {cfg.model.name} ({parameters:,} parameters), "
        f"data {cfg.data.name} ({len(run.datamodule.train_set):,} training, "
        f"{len(run.datamodule.validation_set):,} validation, {len(run.datamodule.test_set):,} test images)"
    )
    reg = "none"
    if run.regularizer is not None:
        options = {key: value for key, value in cfg.reg.items() if key != "_target_"}
        shown_first = ", ".join(f"{key} {value}" for key, value in list(options.items())[:2])
        reg = f"{job.choices.get('reg')}, {shown_first}"
        if "start" in options:
            reg += f", on at {cfg.reg.start}"
    print(f"regularizer {reg}; device {run.trainer.strategy.root_device} x {run.trainer.world_size}")
    if checkpoint is not None:
        print(f"continuing from {shown(checkpoint)}")
    print(flush=True)


def print_row(row: dict[str, Any], folder: Path, note: str = "") -> None:
    """Print the result of a run, and where its files are."""
    print(f"\n{phases(row)}")
    print_pairs(row_table(row))
    print(f"row     {shown(folder / ROW)}")
    print(f"figure  {shown(folder / FIGURE)}")
    if note:
        print(note)
    print(flush=True)

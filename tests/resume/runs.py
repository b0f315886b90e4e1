"""``python run.py`` of a small network with dropout and batch-norm, in children that are killed and started again."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from tests.processes import Child, start
from tests.resume.killing import Call, Event

# Four epochs of four steps; the learning rate drops, and the regularizer begins, after the second.
OPTIONS = [
    "model=cnn",
    "model.net.width=4",
    "+model.net.dropout=0.5",
    "model.max_epochs=4",
    "model.batch_size=200",
    "metric.num_subsets=2",
    "metric.subset_size=10",
    "metric.every_n_validations=1",
    "reg.num_sub_batches=2",
    "trainer.accelerator=cpu",
]
TIMES = ("seconds", "step_ms", "memory", "finished")  # what may differ between two runs of the same command

Point = Call | Event


def command(arguments: list[str], folder: Path, point: Point | None, figure: bool) -> None:
    """The child: `python run.py ARGUMENTS`, ended at a point."""
    from lightning_fisher.experiment import main
    from lightning_fisher.experiment.training import train

    torch.set_num_threads(1)
    rank_zero_only.rank = int(os.environ.get("RANK", "0"))  # set when it was imported, before the fork
    if not figure:  # half of the time of so small a run
        train.dashboard = lambda folder, title: folder / "training.png"
    if point is not None:
        point.arm(folder)
    sys.argv = ["run.py", *arguments]
    main()


def begin(
    folder: Path, point: Point | None = None, options: list[str] = OPTIONS, figure: bool = False, **env: str
) -> Child:
    """Start, or continue, the run of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [*options, f"hydra.run.dir={folder}"]
    log = folder.parent / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    return start("tests.resume.runs:command", arguments, folder, point, figure, log=log, folder=folder.parent, env=env)


def complete(folder: Path, options: list[str] = OPTIONS) -> str:
    """Run to the end; returns the output."""
    child = begin(folder, options=options)
    assert child.wait() == 0, child.output
    return child.output


def state(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def result(folder: Path) -> dict[str, Any]:
    """What the run found: its row and its curve, without what depends on the clock."""
    row = json.loads((folder / "result.json").read_text())
    with open(folder / "history.csv", newline="") as file:
        row["history"] = [_timeless(record) for record in csv.DictReader(file)]
    return _timeless(row)


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not any(word in k for word in TIMES) and k != "overrides"}


def assert_same(folder: Path, whole: Path) -> None:
    """Weights, buffers, optimizer, random state and numbers are those of the uninterrupted run, bit for bit."""
    for name in ("last.ckpt", "best.ckpt"):
        got, expected = state(folder, name), state(whole, name)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "lightning_fisher.random_state"):
            assert _equal(got[key], expected[key]), f"{key} of {name} differs"
    assert result(folder) == result(whole)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)

"""A measure of one's own, entered into a zoo: computed on every network, and judged beside the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.quantities import QUANTITIES
from lightning_fisher.experiment.report.rows import Row
from lightning_fisher.experiment.report.zoo.judgment import (
    Judged,
    effects,
    judge,
    judge_all,
    sorted_by_worst,
    that_fit,
    varied_options,
)
from lightning_fisher.experiment.report.zoo.page import option_table, overall_table
from lightning_fisher.experiment.zoo.loading import networks

Function = Callable[[nn.Module, Tensor, Tensor], Any]


@dataclass
class Entry:
    """How an entered measure did.

    Attributes:
        judged: its judgment.
        place: 1 for the best worst case among all measures.
        text: the tables of all measures, with it among them, as Markdown.
        rows: the rows, with its values.
    """

    judged: Judged
    place: int
    text: str
    rows: list[Row]


def enter(
    function: Function, folder: str | Path, *, name: str = "your measure", higher_is_better: bool = False
) -> Entry:
    """Compute a measure on every network of a zoo, and judge it beside the others.

    Args:
        function: ``(network, inputs, labels) → number``, on a subset of training images; the mean over the subsets
            counts. The network is in evaluation mode; inputs ``[N′, C, H, W]``, labels ``[N′]``.
        folder: with rows and weights, see `networks`.
        name: in the tables.
        higher_is_better: which way it points.

    Raises:
        ConfigError: as `networks`, or if too few networks fit their training images to be ordered.
        ValueError: if ``name`` is one of a measure that is there.
    """
    if name in QUANTITIES:
        raise ValueError(f"Expected argument `name` to be a new one, but got {name!r}.")
    rows = []
    for one in networks(folder):
        started = time.perf_counter()
        values = [float(torch.as_tensor(function(one.net, *subset)).detach()) for subset in one.subsets]
        seconds = {**one.row.get("measure_seconds", {}), name: time.perf_counter() - started}
        rows.append({**one.row, name: sum(values) / len(values), "measure_seconds": seconds})
    fitted = that_fit(rows)
    options = varied_options(fitted)
    judged = judge(fitted, name, options, higher_is_better=higher_is_better) if options else None
    if judged is None:
        raise ConfigError(
            f"Expected at least three networks that fit their images and differ in an option and in {name}, but got "
            f"{len(fitted)} of {len(rows)}."
        )
    found = effects(fitted, options)
    done = sorted_by_worst([*judge_all(fitted, options), judged], found)
    text = f"{option_table(done, found)}\n\n{overall_table(done, fitted)}\n"
    return Entry(judged, done.index(judged) + 1, text, rows)

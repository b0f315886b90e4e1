"""Measures of networks that were trained before, added to their rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from lightning.pytorch import seed_everything
from omegaconf import DictConfig
from torch import Tensor

from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records import provenance
from lightning_fisher.experiment.records.result import require_rows, write_row
from lightning_fisher.experiment.report.rows import Row
from lightning_fisher.experiment.sweep.progress import duration
from lightning_fisher.experiment.training.build import made, make_module
from lightning_fisher.experiment.zoo.loading import config_of, load_network
from lightning_fisher.functional.measures import select_measures
from lightning_fisher.metrics import MeasureMetric

LATER = "measured_later"  # in a row: what was added to it, by which code


def add_measures(
    folder: str | Path, measures: Sequence[str], say: Callable[[str], object] = print, *, subsets: int | None = None
) -> int:
    """Compute measures that rows lack, from the networks' weights, and write them into the rows.

    They are computed on the subsets of the row's other measures. A row is written as soon as its network is measured:
    the same call goes on after an interruption, and what a row has is not computed again.
    ``distance_from_initialization`` takes the initial weights from the row's seed.

    Args:
        folder: as for :func:`~lightning_fisher.experiment.zoo.networks`.
        measures: names of measures, or of groups.
        say: is called with a line a network.
        subsets: of the row's other measures, how many of the first to compute them on, at least 1; all with None.

    Returns:
        The number of rows that were changed.

    Raises:
        ConfigError: if a measure is unknown, ``subsets`` isn't positive, there is no row, weights are missing, or the
            configs aren't those of the rows.
    """
    if subsets is not None and subsets < 1:
        raise ConfigError(f"Expected option `--subsets` to be at least 1, but got {subsets}.")
    try:
        wanted = [measure.name for measure in select_measures(measures)]
    except ValueError as error:
        raise ConfigError(str(error).replace("argument `measures`", "option `--measure`")) from error
    found = require_rows(Path(folder))
    missing = [(run, row, lacks) for run, row in found if (lacks := [name for name in wanted if name not in row])]
    say(f"{len(found)} networks, {len(found) - len(missing)} with all of {len(wanted)} measures")
    started = time.monotonic()
    for done, (run, row, lacks) in enumerate(missing, start=1):
        write_row(run, measured(Path(folder), run, row, lacks, subsets))
        left = (time.monotonic() - started) / done * (len(missing) - done)
        say(f"{run.name}: {len(lacks)} measures; {done} of {len(missing)}, about {duration(left)} left")
    return len(missing)


def measured(folder: Path, run: Path, row: Row, names: Sequence[str], subsets: int | None = None) -> Row:
    """The row of a network with further measures on its first ``subsets`` subsets, and what computed them."""
    cfg = config_of(row)
    network = load_network(folder, run, row)
    metric = MeasureMetric(list(names), initial=initial_weights(cfg), logit_norm=cfg.metric.logit_norm)
    taken = network.subsets[:subsets]
    for inputs, labels in taken:
        metric.update(network.net, inputs, labels)
    values = {name: float(value) for name, value in metric.compute().items()}
    record = {
        "measures": list(names),
        "subsets": len(taken),
        "versions": provenance.versions(),
        **provenance.git_commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return {
        **row,
        **values,
        "measure_seconds": {**row.get("measure_seconds", {}), **metric.seconds},
        LATER: [*row.get(LATER, []), record],
    }


def initial_weights(cfg: DictConfig) -> dict[str, Tensor]:
    """The weights before training, drawn as a run of this config draws them."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    made("data", cfg.data, ImageDataModule)
    return {name: value.clone() for name, value in make_module(cfg.model).net.state_dict().items()}

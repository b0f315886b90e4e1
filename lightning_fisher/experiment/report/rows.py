"""Rows as data: values by dotted name, groups, mean and spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fisher.arguments import is_number
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import did_you_mean
from lightning_fisher.experiment.records.result import before, require_rows

Row = dict[str, Any]

# Choices and overrides that say how a run was made, not what it was.
NOT_VARIED = ("seed", "experiment", "size", "logger", "trainer", "debug", "restart")


class Spread(NamedTuple):
    """Mean and sample standard deviation of n values; the latter None for one value."""

    mean: float
    std: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Summarize values.

    Raises:
        ValueError: if there is none.
    """
    if not values:
        raise ValueError("Expected argument `values` to hold at least one value, but got none.")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def value(row: Row, key: str) -> Any:
    """Look up a metric of a row, a group choice (``reg``) or an option (``data.confusion_size``); None if absent."""
    for place in (row, row.get("choices", {}), row.get("config", {})):
        if key in place and not isinstance(place[key], dict):
            return place[key]
    return before(row.get("config", {}), key)


def numbers(rows: Sequence[Row], key: str) -> list[float]:
    """The values of a metric over rows, those that lack it left out."""
    found = (value(row, key) for row in rows)
    return [float(v) for v in found if is_number(v)]


def varied(rows: Sequence[Row]) -> list[str]:
    """The options and group choices that were set to different values among the rows, seeds aside."""
    keys = dict.fromkeys(
        override.lstrip("+~").partition("=")[0] for row in rows for override in row.get("overrides", [])
    )
    return [
        key for key in keys if key.split(".")[0] not in NOT_VARIED and len({repr(value(row, key)) for row in rows}) > 1
    ]


def order(values: Sequence[Any], wanted: Sequence[Any] | None = None) -> list[Any]:
    """Sort distinct values: as wanted, numbers by size, the rest as they came, baselines (``none``, null) first."""
    distinct = list(dict.fromkeys(values))
    if wanted:
        known = [v for v in wanted if v in distinct]
        return known + [v for v in distinct if v not in known]
    if all(is_number(v) for v in distinct):
        return sorted(distinct)
    return sorted(distinct, key=lambda v: v not in ("none", None))


def grouped(
    rows: Sequence[Row], keys: Sequence[str], wanted: Sequence[Any] | None = None
) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of ``keys``, ordered by each key in turn.

    Args:
        rows: the rows.
        keys: options or choices.
        wanted: an order for the values of the first key.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(value(row, key) for key in keys), []).append(row)
    ranks = [
        {repr(v): i for i, v in enumerate(order([g[place] for g in groups], wanted if place == 0 else None))}
        for place in range(len(keys))
    ]
    return dict(sorted(groups.items(), key=lambda item: [ranks[i][repr(v)] for i, v in enumerate(item[0])]))


def load_rows(folder: Path, runs: Sequence[Path] | None = None) -> list[Row]:
    """Read the rows below a folder, or those of some run folders.

    Raises:
        ConfigError: if there is none.
    """
    return [row for _, row in require_rows(folder, runs)]


def require_known(rows: Sequence[Row], key: str) -> None:
    """Refuse a name that no row knows.

    Raises:
        ConfigError: with the nearest known name.
    """
    if all(value(row, key) is None for row in rows):
        known = {name for row in rows for place in (row, row["choices"], row["config"]) for name in place}
        raise ConfigError(
            f"Expected the name of an option or a metric of the rows, but got `{key}`.{did_you_mean(key, known)}"
        )

"""A run is a row: ``result.json``, written as the very last act, so that its presence means complete."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fisher.exceptions import ConfigError

FILE_NAME = "result.json"
FORMAT = 1

# Options that came after others had run: runs made before are found again, and compared with those made since. By
# option: one that has been beside it from the start, and the value that says what there was before.
LATER: dict[str, tuple[str, Any]] = {
    "reg.scaling": ("reg.beta", "linear"),
    "reg.difference": ("reg.beta", "backward"),
    "reg.step": ("reg.beta", "fixed"),
    "reg.strength": ("reg.beta", 1.0),
    "comparison": ("seed", None),
    "model.compile": ("model.label_smoothing", False),
    "model.manual_optimization": ("model.label_smoothing", False),
    "metric.residual": ("metric.subset_size", True),
    "metric.scale": ("metric.subset_size", "none"),
    "metric.measures": ("metric.subset_size", []),
}


def plain(value: Any) -> Any:
    """Convert to what JSON can hold: infinities and NaN become None, anything unknown its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    Raises:
        OSError: with the path; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_row(folder: Path, row: dict[str, Any]) -> Path:
    """Write a row to ``folder/result.json`` and return the path."""
    path = folder / FILE_NAME
    write_atomically(path, json.dumps(plain({"format": FORMAT, **row}), indent=1) + "\n")
    return path


def read_row(folder: Path) -> dict[str, Any] | None:
    """Read the row of a run folder; None where there is none, or none that can be read."""
    try:
        row = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("format") == FORMAT else None


def complete_row(folder: Path, config_hash: str) -> dict[str, Any] | None:
    """Read the row of a folder if it is that of the same configuration, else None."""
    row = read_row(folder)
    return row if row is not None and row.get("config_hash") == config_hash else None


def find_rows(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every run folder at or below ``folder`` that holds a row, with the row, in order of the path."""
    for path in sorted(folder.rglob(FILE_NAME)):
        row = read_row(path.parent)
        if row is not None:
            yield path.parent, row


def require_rows(folder: Path, runs: Sequence[Path] | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """The run folders at or below a folder that hold a row, with the rows, in order of the path.

    Args:
        folder: where they are looked for.
        runs: only these run folders, in this order.

    Raises:
        ConfigError: if there is none.
    """
    found = list(find_rows(folder)) if runs is None else [(run, row) for run in runs if (row := read_row(run))]
    if not found:
        raise ConfigError(f"Expected a folder with at least one complete run (result.json), but got `{folder}`.")
    return found


def is_as_before(key: str, value: Any) -> bool:
    """Whether an option came later and says what there was before: runs with and without it are the same."""
    return key in LATER and LATER[key][1] == value


def before(config: Mapping[str, Any], key: str) -> Any:
    """The value of an option in a run that was made before the option; None if there never was one."""
    beside, value = LATER.get(key, (None, None))
    return value if beside in config else None

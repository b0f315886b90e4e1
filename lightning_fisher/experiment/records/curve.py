"""The curve of a run as a file: ``history.csv``, one record per epoch."""

from __future__ import annotations

import csv
from pathlib import Path

FILE_NAME = "history.csv"


def read_history(folder: Path) -> list[dict[str, float]]:
    """Read ``history.csv`` of a run folder; missing values are left out of a record.

    Raises:
        FileNotFoundError: if the folder has none.
    """
    with open(folder / FILE_NAME, newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in record.items() if v not in ("", None)} for record in csv.DictReader(file)]

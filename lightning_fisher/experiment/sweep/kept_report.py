"""The report of a sweep whose rows have not changed: shown again, without the imports that make one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import lightning_fisher
from lightning_fisher.experiment.display.terminal import print_report
from lightning_fisher.experiment.records.result import FILE_NAME as ROW
from lightning_fisher.experiment.records.result import write_atomically
from lightning_fisher.experiment.records.run_folders import REPORT

KEPT = ".report.json"  # in the folder of a sweep: what its report was made of, and its text
EXPERIMENT = Path(__file__).parents[1]
SOURCES = ("report/**/*.py", "records/*.py", "display/*.py")  # what makes a report of rows


def show(folder: Path, runs: Sequence[Path]) -> bool:
    """Print the report that was made of the same rows by the same code; whether there is one.

    Args:
        folder: of the sweep.
        runs: the run folders of the rows, in order.
    """
    try:
        kept = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        figures = [folder / name for name in kept["figures"]]
        text, of = str(kept["text"]), kept["of"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    if of != _fingerprint(folder, runs) or not all(path.is_file() for path in (folder / REPORT, *figures)):
        return False
    print_report(text, [folder / REPORT, *figures])
    return True


def keep(folder: Path, runs: Sequence[Path], text: str, figures: Sequence[Path]) -> None:
    """Note what a report was made of, for the same command given again.

    Args:
        folder: of the sweep.
        runs: the run folders of the rows, in order.
        text: the report as it was printed.
        figures: its figures, in the folder of the sweep.
    """
    kept = {"of": _fingerprint(folder, runs), "text": text, "figures": [path.name for path in figures]}
    write_atomically(folder / KEPT, json.dumps(kept, indent=1) + "\n")


def _fingerprint(folder: Path, runs: Sequence[Path]) -> str:
    """SHA-256 of the rows and of the code that makes a report of them."""
    digest = hashlib.sha256(f"{lightning_fisher.__version__} {folder.name}".encode())
    sources = [path for pattern in SOURCES for path in sorted(EXPERIMENT.glob(pattern))]
    for path in (*sources, *(run / ROW for run in runs)):
        digest.update(f"\n{path.parent.name}/{path.name}\n".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()

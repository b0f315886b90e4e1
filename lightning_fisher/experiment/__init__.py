"""The experiments of the paper as Hydra commands: train one run, record a result row, report over rows."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of ``run.py`` and ``lightning-fisher``; says what to install where only the library is."""
    try:
        from lightning_fisher.experiment.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lightning_fisher"):
            raise
        sys.exit(f"Error: the experiments need `{error.name}`: install lightning-fisher with its extra [experiments].")
    run()

"""The experiments of the paper as Hydra commands: train one run, record a result row, report over rows."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of ``run.py`` and ``lightning-fisher``; says what to install where only the library is.

    Exits with 1 on an error, and if a job of a sweep failed.
    """
    from lightning_fisher.command_line import lasting_output, signals  # first of all: the rest takes tenths of a second

    with signals.listening(), lasting_output.lasting_output():
        try:
            with signals.ending_at_once(lambda: signals.AGAIN):
                from lightning_fisher.experiment.cli import main as run
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("lightning_fisher"):
                raise
            sys.exit(
                f"Error: the experiments need `{error.name}`: install lightning-fisher with its extra [experiments]."
            )
        run()

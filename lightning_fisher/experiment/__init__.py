"""The experiments of the paper as Hydra commands: train one run, record a result row, report over rows."""

from lightning_fisher.experiment.app import main

__all__ = ["main"]

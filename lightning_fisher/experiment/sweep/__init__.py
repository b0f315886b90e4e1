"""Sweeps: every job in a process of its own."""

from lightning_fisher.experiment.sweep.jobs import SweepCallback

__all__ = ["SweepCallback"]

"""Sweeps: every job in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.experiment.sweep.jobs import SweepCallback

__all__ = [
    "SweepCallback",
]

__getattr__, __dir__ = lazy_exports(__name__)

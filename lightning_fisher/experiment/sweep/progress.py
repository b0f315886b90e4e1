"""How far a sweep is, and about how long it takes still."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any


def progress(ended: Sequence[dict[str, Any]], total: int, at_once: int = 1) -> str:
    """Say in one line how many jobs of a sweep have ended, and about how long the others take.

    The estimate is the mean time of the jobs that this command ran, times those that are left, over those that run at
    once; jobs that were complete already took none and don't count. Jobs that are left and complete already shorten it.

    Args:
        ended: how jobs ended, as :func:`~lightning_fisher.experiment.sweep.job_record.read` gives them.
        total: jobs of the sweep.
        at_once: jobs that run at a time.
    """
    failed = sum(job["state"] == "failed" for job in ended)
    ran = [float(job["seconds"]) for job in ended if job["state"] != "complete already"]
    left = total - len(ended)
    line = f"[sweep] {len(ended)} of {total} jobs done"
    if failed:
        line += f", {failed} failed"
    if left and ran:
        line += f", about {duration(fmean(ran) * left / max(1, min(at_once, left)))} left"
    return line


def duration(seconds: float) -> str:
    """Seconds in the unit a reader would use: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"

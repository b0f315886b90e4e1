"""How far a sweep is: arithmetic by hand."""

from __future__ import annotations

import pytest

from lightning_fisher.experiment.sweep.progress import duration, progress


def ended(*seconds: float, state: str = "complete") -> list[dict]:
    return [{"state": state, "seconds": s} for s in seconds]


def test_estimate_is_the_mean_of_the_jobs_that_ran_times_those_left() -> None:
    jobs = ended(100.0, 140.0) + ended(0.0, 0.0, state="complete already") + ended(60.0, state="failed")
    assert progress(jobs, 11) == "[sweep] 5 of 11 jobs done, 1 failed, about 10 min left"  # 6 x 100 s
    assert progress(jobs, 11, at_once=3) == "[sweep] 5 of 11 jobs done, 1 failed, about 3 min left"
    assert progress(jobs, 6, at_once=3) == "[sweep] 5 of 6 jobs done, 1 failed, about 2 min left"  # one runs alone


def test_no_estimate_without_a_job_that_ran_or_one_that_is_left() -> None:
    assert progress(ended(0.0, state="complete already"), 3) == "[sweep] 1 of 3 jobs done"
    assert progress(ended(2.0, 2.0), 2) == "[sweep] 2 of 2 jobs done"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40.4, "40 s"), (720, "12 min"), (12600, "3.5 h"), (47.9 * 3600, "47.9 h"), (2.1 * 86400, "2.1 days")],
)
def test_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words

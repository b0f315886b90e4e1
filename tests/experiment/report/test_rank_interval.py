"""What reports say of their intervals."""

from __future__ import annotations

import pytest

from lightning_fisher.experiment.report.rank_interval import said


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        ([3, 10], "are the jackknife's over seeds."),
        ([3, 2], "are the jackknife's over seeds (with fewer than 3 the bootstrap's over networks)."),
        ([1], "are the bootstrap's over networks: there are fewer than 3 seeds."),
    ],
)
def test_the_sentence_is_of_all_studies(seeds, sentence):
    assert said(seeds) == f"Intervals, 95 %, {sentence}"

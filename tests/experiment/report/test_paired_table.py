"""Paired differences against scipy's paired t test, on rows made up for it."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from lightning_fisher.experiment.report.paired_difference import mean_difference
from lightning_fisher.experiment.report.paired_table import differences_table, methods
from tests.experiment.synthetic import row

BEFORE = [20.0, 22.0, 19.5, 23.0]
AFTER = [18.0, 21.5, 19.7, 20.0]


def test_interval_is_that_of_the_paired_t_test():
    found = mean_difference([a - b for a, b in zip(AFTER, BEFORE, strict=True)])
    interval = stats.ttest_rel(AFTER, BEFORE).confidence_interval(0.95)
    assert found.mean == pytest.approx(-1.325)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert (found.lower, found.n) == (3, 4)


def test_one_pair_has_no_interval_and_none_is_an_error():
    assert math.isnan(mean_difference([1.0]).low)
    with pytest.raises(ValueError, match="differences"):
        mean_difference([])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_difference_that_is_no_number_has_no_mean(value):
    """Two infinite measures, or one: networks that don't fit."""
    found = mean_difference([1.0, value, 2.0])
    assert math.isnan(found.mean)
    assert math.isnan(found.low)
    assert not found.clear


def test_only_equal_seeds_are_compared_and_settings_are_kept_apart():
    rows = [
        row(seed=seed, test_error=error + 10 * noise, **{"data.label_noise": noise, "reg.beta": beta})
        for noise in (0.0, 0.4)
        for beta, errors in ((0, BEFORE), (10, AFTER))
        for seed, error in enumerate(errors)
        if not (beta == 10 and noise == 0.4 and seed == 2)
    ]
    table = differences_table(rows, ["data.label_noise", "reg.beta"])
    lines = [line.split("|") for line in table.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line[1:-1]] for line in lines]
    assert [line[:3] for line in cells] == [["0.0", "10", "4"], ["0.4", "10", "3"]]
    assert cells[0][3].startswith(("-1.32 [", "-1.33 ["))
    assert [line[4] for line in cells] == ["3 of 4", "3 of 3"]
    assert table.startswith("Baseline: β 0.")


def test_nothing_to_compare():
    assert methods(["data.label_noise", "reg", "reg.beta", "regular"]) == ["reg", "reg.beta"]
    assert differences_table([row(**{"data.label_noise": 0.1})], ["data.label_noise"]) == ""

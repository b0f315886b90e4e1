"""The statistics of scoring against scipy and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score

from lightning_fisher.experiment.report.paired_difference import paired_difference
from lightning_fisher.experiment.scoring.gradient_influence import auc, precision_at


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_of_paired_differences(level: float) -> None:
    shared, first, second = torch.randn(3, 11, dtype=torch.float64)
    found = paired_difference(shared + 0.1 * first, shared + 0.1 * second + 0.05, level)
    expected = ttest_rel(shared + 0.1 * second + 0.05, shared + 0.1 * first).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.n == 11


def test_what_both_share_cancels() -> None:
    shared = 100 * torch.randn(8, dtype=torch.float64)
    found = paired_difference(shared, shared + 1 + 0.01 * torch.randn(8, dtype=torch.float64))
    assert found.high - found.low < 0.05
    assert found.clear


def test_one_pair_has_no_interval() -> None:
    found = paired_difference(torch.tensor([1.0]), torch.tensor([3.0]))
    assert (found.mean, found.n, found.clear) == (2.0, 1, False)
    assert math.isnan(found.low)
    with pytest.raises(ValueError, match="two vectors of one length"):
        paired_difference(torch.zeros(2), torch.zeros(3))


def test_auc_with_ties_and_infinities() -> None:
    scores = torch.randint(0, 6, (200,)).double()
    positive = torch.rand(200) < 0.3
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), rel=1e-12)
    scores[:5] = -torch.inf  # zero gradients
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores.clamp_min(-1)), rel=1e-12)
    assert math.isnan(auc(scores, torch.zeros(200, dtype=torch.bool)))


def test_precision_of_the_k_largest() -> None:
    found = precision_at(torch.tensor([1.0, 4.0, 3.0, 2.0]), torch.tensor([True, True, False, True]))
    assert found.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])

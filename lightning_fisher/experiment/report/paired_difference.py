"""Paired differences with Student's interval: of two networks over the same subsets, of two methods over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student
from torch import Tensor

LEVEL = 0.95


class Difference(NamedTuple):
    """The mean of n paired differences and its confidence interval, ``d̄ ± t_{n−1} s / √n``.

    Attributes:
        mean: of the differences.
        low: end of the interval; nan for n < 2.
        high: other end.
        n: pairs.
        lower: how many of them are below zero.
    """

    mean: float
    low: float
    high: float
    n: int
    lower: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def mean_difference(differences: Sequence[float], level: float = LEVEL) -> Difference:
    """Student's interval of the mean of paired differences; nan where one of them is no number.

    Raises:
        ValueError: if there is none.
    """
    n = len(differences)
    if not n:
        raise ValueError("Expected argument `differences` to hold at least one value, but got none.")
    finite = all(map(math.isfinite, differences))  # a measure may be infinite, for a network that doesn't fit
    mean, half = statistics.fmean(differences) if finite else math.nan, math.nan
    if n > 1 and finite:
        half = float(student.ppf((1 + level) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n, sum(d < 0 for d in differences))


def paired_difference(first: Tensor, second: Tensor, level: float = LEVEL) -> Difference:
    """Student's interval of the mean of ``second − first``: what both share, the draw of a subset, cancels.

    It covers the choice of subsets (or test images) only. Two networks are two draws of training, and what another
    seed would have given is not in it.

    Args:
        first: n values of one network.
        second: n values of the other, of the same subsets in the same order.
        level: coverage.

    Raises:
        ValueError: if the shapes differ.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Expected two vectors of one length, but got {tuple(first.shape)} and {tuple(second.shape)}.")
    return mean_difference((second.double() - first.double()).tolist(), level)

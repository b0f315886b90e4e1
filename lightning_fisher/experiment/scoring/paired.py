"""The difference of two networks over the same subsets or images, with its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.stats import t as student
from torch import Tensor

LEVEL = 0.95


class Difference(NamedTuple):
    """The mean of n paired differences ``second − first`` and its confidence interval.

    Attributes:
        mean: of the differences.
        low: end of the interval; nan for n < 2.
        high: other end.
        n: pairs.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


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
    differences = second.double() - first.double()
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Difference(mean, math.nan, math.nan, n)
    half = float(student.ppf((1 + level) / 2, n - 1)) * float(differences.std()) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)

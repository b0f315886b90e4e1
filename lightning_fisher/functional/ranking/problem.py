"""What intervals of a statistic over runs share: the statistic, the interval, and the checks of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fisher.functional.ranking.correlation import require_paired
from lightning_fisher.functional.ranking.settings import codes

Statistic = Callable[..., Tensor]


class Interval(NamedTuple):
    """A confidence interval: two float64 scalars, ``nan`` where the statistic is undefined."""

    low: Tensor
    high: Tensor


class Problem(NamedTuple):
    """Runs, over subsets of which a statistic is evaluated.

    Attributes:
        statistic: of two ``[r, n]`` tensors, and of the controls ``[r, k, n]`` where there are any.
        x: ``[n]``, float64.
        y: ``[n]``, float64.
        given: ``[k, n]``, or None.
        labels: ``[n]`` integers, equal for runs of one cluster.
    """

    statistic: Statistic
    x: Tensor
    y: Tensor
    given: Tensor | None
    labels: Tensor

    def __call__(self, index: Tensor) -> Tensor:
        """The statistic ``[r]`` of the runs ``[r, n′]``."""
        index = index.to(self.x.device)
        controls = [] if self.given is None else [self.given[:, index].transpose(0, 1)]
        return self.statistic(self.x[index], self.y[index], *controls)

    def whole(self) -> Tensor:
        """The statistic of all runs, a scalar."""
        return self(torch.arange(len(self.x)).unsqueeze(0))[0]

    def members(self) -> list[Tensor]:
        """The runs of each cluster."""
        return [torch.nonzero(self.labels == label).flatten() for label in self.labels.unique()]


def require_problem(
    statistic: Statistic,
    x: Tensor,
    y: Tensor,
    clusters: Sequence[Hashable] | Tensor | None,
    given: Tensor | None,
    level: float,
) -> Problem:
    """The runs, checked.

    Raises:
        ValueError: If the shapes differ, are not ``[n]``, or the level is not between 0 and 1.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import kendall_tau
        >>> runs = require_problem(kendall_tau, torch.arange(4), torch.arange(4), ["a", "a", "b", "b"], None, 0.95)
        >>> float(runs.whole()), [members.tolist() for members in runs.members()]
        (1.0, [[0, 1], [2, 3]])
    """
    if not 0 < level < 1:
        raise ValueError(f"Expected argument `level` to be between 0 and 1, but got {level}.")
    x, y = require_paired(x, y)
    if x.ndim != 1:
        raise ValueError(f"Expected arguments `x` and `y` to have shape [n], but got {tuple(x.shape)}.")
    if given is not None and (given.ndim != 2 or given.shape[1] != len(x)):
        raise ValueError(f"Expected argument `given` to have shape [k, {len(x)}], but got {tuple(given.shape)}.")
    labels = torch.arange(len(x)) if clusters is None else codes("clusters", clusters, len(x))
    return Problem(statistic, x, y, given, labels)

"""Robust sign error: how often a measure points the wrong way, and how often in its worst environment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fisher.arguments import require_integer
from lightning_fisher.functional.ranking.correlation import pair_signs, require_paired
from lightning_fisher.functional.ranking.settings import Options, combined, option_codes


class SignError(NamedTuple):
    """Sign errors over environments; 0: always right, ½: a coin, 1: always wrong.

    Attributes:
        mean: Over the environments, float64 scalar.
        percentile_90: Their 90th percentile.
        worst: Their maximum: the robust sign error.
        errors: The errors of the environments, ``[E]``, sorted; every one is there in both directions.
    """

    mean: Tensor
    percentile_90: Tensor
    worst: Tensor
    errors: Tensor


class RobustSignError(NamedTuple):
    """Sign errors of all environments, and of those in which one option varies.

    Attributes:
        overall: Over all environments.
        per_option: Over the environments of every option.
    """

    overall: SignError
    per_option: dict[str, SignError]


def robust_sign_error(
    x: Tensor, y: Tensor, options: Options, *, min_ess: float, test_size: int | None = None
) -> RobustSignError:
    """Sign error over pairs of environments and its worst case (Dziugaite et al. 2020).

    An environment is a pair of settings that differ in exactly one option. Its error is the weighted mean, over all
    pairs of a run of the one and a run of the other, of ``½ (1 − sgn(x_i − x_j) sgn(y_i − y_j))``; a tie is ½. A mean
    over all pairs hides an option for which a measure is always wrong; the worst environment shows it.

    With ``test_size``, pairs whose ``y`` differ by less than the noise of a test set of that size count little:
    ``w = max(0, h − ½)``, ``h = max(0, 1 − 2 exp(−2 n (|y_i − y_j|/2)²))²``. Environments with an effective sample size
    ``(Σw)²/Σw²`` below ``min_ess`` are left out. With one run a setting it is 1, so that the paper's 12 leaves none.

    Args:
        x: ``[n]``, a measure of n runs, oriented so that larger should mean a larger ``y``.
        y: ``[n]``, for example their generalization gaps: with ``test_size`` a fraction, not percent.
        options: Name → n values, the options that vary. Runs that agree in all are repeats of a setting: leave the seed
            out.
        min_ess: Smallest effective sample size of an environment that counts; the paper takes 12. Report it.
        test_size: Samples of the test set; ``None``: all pairs weigh the same.

    Returns:
        A `RobustSignError`; ``nan`` and no errors where no environment is left. A ``nan`` in x or y makes the errors
        ``nan`` that it enters.

    Raises:
        ValueError: If shapes or the numbers of values differ, or ``test_size`` or ``min_ess`` is out of range.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional.ranking import robust_sign_error
        >>> options = {"width": [8, 8, 16, 16], "lr": [0.1, 0.2, 0.1, 0.2]}
        >>> x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 4.0, 3.0])
        >>> error = robust_sign_error(x, y, options, min_ess=1)
        >>> float(error.overall.mean), float(error.overall.worst), float(error.per_option["width"].worst)
        (0.25, 1.0, 0.0)
    """
    x, y = require_paired(x, y)
    if x.ndim != 1:
        raise ValueError(f"Expected arguments `x` and `y` to have shape [n], but got {tuple(x.shape)}.")
    if not min_ess >= 0:
        raise ValueError(f"Expected argument `min_ess` to be a number of at least 0, but got {min_ess}.")
    require_integer("test_size", test_size, 1, or_none=True)
    table = option_codes(options, len(x)).to(x.device)
    error = (1 - pair_signs(x) * pair_signs(y)) / 2
    weight = torch.ones_like(error) if test_size is None else _weight(y, test_size)
    settings = combined(table)
    environments = settings.unsqueeze(1) * len(x) + settings  # both directions
    different = table.unsqueeze(1) != table.unsqueeze(2)
    alone = different.sum(0) == 1
    per_option = {
        name: _environment_errors(error, weight, environments, alone & different[i], min_ess)
        for i, name in enumerate(options)
    }
    return RobustSignError(
        _summary(torch.cat(list(per_option.values()))), {name: _summary(errors) for name, errors in per_option.items()}
    )


def _weight(y: Tensor, test_size: int) -> Tensor:
    difference = (y.unsqueeze(1) - y).abs()
    h = (1 - 2 * torch.exp(-2 * test_size * (difference / 2).square())).clamp_min(0.0).square()
    return (h - 0.5).clamp_min(0.0)


def _environment_errors(error: Tensor, weight: Tensor, environments: Tensor, pairs: Tensor, min_ess: float) -> Tensor:
    members = torch.unique(environments[pairs], return_inverse=True)[1]
    count = int(members.max()) + 1 if len(members) else 0

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add_(0, members, values)

    weights = weight[pairs]
    sums, squares = total(weights), total(weights.square())
    errors = total(torch.where(weights > 0, weights * error[pairs], 0.0)) / sums
    return errors[(sums > 0) & (sums.square() >= min_ess * squares)]


def _summary(errors: Tensor) -> SignError:
    errors = errors.sort().values
    if len(errors) == 0:
        undefined = errors.new_full((), torch.nan)
        return SignError(undefined, undefined, undefined, errors)
    return SignError(errors.mean(), torch.quantile(errors, 0.9), errors.max(), errors)

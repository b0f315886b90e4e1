"""γ ↔ γ̂, the generalization bound of Theorem 1 and the FIA criterion: arithmetic on a few numbers.

Volumes and determinants are taken and kept as logarithms: at W = 1e6 neither fits a float.
"""

from __future__ import annotations

import math

from torch import Tensor

Number = float | Tensor  # tensors with one element


def gamma_from_estimate(estimate: Number, *, num_parameters: int, subset_size: int) -> float:
    """``γ ≈ (W/N′) γ̂ + W ln(1/W)`` (Eq. 7 of Sec. 5.3).

    Args:
        estimate: γ̂, the mean of ``ln|ξ|`` over subsets (Eq. 6).
        num_parameters: W.
        subset_size: N′, the samples of a subset.

    Returns:
        An approximation of γ = ln|I_S|, in nats.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> from lightning_fisher.functional.fisher.bounds import gamma_from_estimate
        >>> round(gamma_from_estimate(-900.0, num_parameters=1000, subset_size=100), 3)
        -15907.755
    """
    _at_least("num_parameters", num_parameters, 1)
    _at_least("subset_size", subset_size, 1)
    return num_parameters / subset_size * float(estimate) - num_parameters * math.log(num_parameters)


def estimate_from_gamma(gamma: Number, *, num_parameters: int, subset_size: int) -> float:
    """``γ̂ ≈ N′ (γ/W + ln W)``, Eq. 7 solved for γ̂; the inverse of `gamma_from_estimate`.

    Args:
        gamma: γ = ln|I_S|, in nats.
        num_parameters: W.
        subset_size: N′, the samples of a subset.

    Returns:
        An approximation of γ̂, in nats.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> from lightning_fisher.functional.fisher.bounds import estimate_from_gamma
        >>> round(estimate_from_gamma(-15907.755, num_parameters=1000, subset_size=100), 3)
        -900.0
    """
    _at_least("num_parameters", num_parameters, 1)
    _at_least("subset_size", subset_size, 1)
    return subset_size * (float(gamma) / num_parameters + math.log(num_parameters))


def log_ellipsoid_height(gamma: Number, *, num_parameters: int, log_volume: float) -> float:
    """``ln h`` of the ellipsoid ``{½ (w−w₀)ᵀ I (w−w₀) ≤ h}`` of volume V (Sec. 5.1.1).

    ``h = ½ (V Γ(W/2+1) |I|^{1/2} / π^{W/2})^{2/W}``: how far the loss rises in a neighborhood of that volume.

    Args:
        gamma: γ = ln|I|, in nats.
        num_parameters: W.
        log_volume: ln V.

    Returns:
        ln h.

    Raises:
        ValueError: If ``num_parameters`` is not positive.

    Example:
        >>> import math
        >>> from lightning_fisher.functional.fisher.bounds import log_ellipsoid_height
        >>> math.exp(log_ellipsoid_height(0.0, num_parameters=2, log_volume=math.log(math.pi)))  # unit disc
        0.5
    """
    _at_least("num_parameters", num_parameters, 1)
    half = num_parameters / 2
    log_radius = (log_volume + math.lgamma(half + 1) + float(gamma) / 2 - half * math.log(math.pi)) / half
    return log_radius - math.log(2)


def log_bound_term(gamma: Number, *, num_parameters: int, log_volume: float) -> float:
    """``ln A`` of Theorem 1, ``A = 1/(4πe) · W · V^{2/W} · π^{1/W} · exp(γ/W)``.

    A is the ellipsoid's height h by Stirling's formula, without its factor ``W^{1/W} → 1``.

    Args:
        gamma: γ = ln|I_S|, in nats.
        num_parameters: W.
        log_volume: ln V, V the volume of the neighborhood of the minimum.

    Returns:
        ln A.

    Raises:
        ValueError: If ``num_parameters`` is not positive.

    Example:
        >>> from lightning_fisher.functional.fisher.bounds import log_bound_term, log_ellipsoid_height
        >>> sizes = {"num_parameters": 10**6, "log_volume": -2e6}
        >>> round(log_bound_term(-5e6, **sizes), 4), round(log_ellipsoid_height(-5e6, **sizes), 4)
        (1.2845, 1.2845)
    """
    _at_least("num_parameters", num_parameters, 1)
    logs = 2 * log_volume + math.log(math.pi) + float(gamma)
    return math.log(num_parameters) - math.log(4 * math.pi * math.e) + logs / num_parameters


def theorem1_bound(
    train_loss: Number,
    *,
    minimum_loss: Number,
    gamma: Number,
    num_parameters: int,
    num_samples: int,
    log_volume: float,
    delta: float = 0.05,
) -> float:
    """Upper bound of the expected loss, ``E_Q[L(D,w)]`` (Theorem 1).

    ``E_Q[L(D,w)] ≤ E_Q[L(S,w)] + 2 √((2 L₀ + 2A + ln(2N/δ)) / (N − 1))`` with probability at least 1 − δ, A as
    in `log_bound_term`, Q the uniform distribution over the neighborhood of the minimum.

    Args:
        train_loss: ``E_Q[L(S,w)]``, the mean training loss over the neighborhood.
        minimum_loss: ``L₀ = L(S, w₀)``, the training loss at the minimum.
        gamma: γ = ln|I_S(w₀)|, exact or by `gamma_from_estimate`.
        num_parameters: W.
        num_samples: N, the size of the training set.
        log_volume: ln V, V the volume of the neighborhood.
        delta: The probability δ with which the bound may fail.

    Returns:
        The bound; ``inf`` where A exceeds every float.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> from lightning_fisher.functional.fisher.bounds import theorem1_bound
        >>> bound = theorem1_bound(
        ...     0.01, minimum_loss=0.001, gamma=-14e6, num_parameters=10**6, num_samples=50_000, log_volume=-1e6
        ... )
        >>> round(bound, 4)
        0.0441
    """
    _at_least("num_samples", num_samples, 2)
    if not 0 < delta < 1:
        raise ValueError(f"Expected argument `delta` to be between 0 and 1, but got {delta}.")
    for name, value in (("train_loss", train_loss), ("minimum_loss", minimum_loss)):
        if not float(value) >= 0:
            raise ValueError(f"Expected argument `{name}` to be at least 0, but got {float(value)}.")
    log_term = log_bound_term(gamma, num_parameters=num_parameters, log_volume=log_volume)
    term = math.exp(log_term) if log_term < 700 else math.inf
    inside = 2 * float(minimum_loss) + 2 * term + math.log(2 * num_samples / delta)
    return float(train_loss) + 2 * math.sqrt(inside / (num_samples - 1))


def fia(minimum_loss: Number, *, gamma: Number, num_parameters: int, num_samples: int, log_volume: float) -> float:
    """Fisher information approximation of the description length at a minimum (Sec. 5.2).

    ``FIA = N L₀ + (W/2) ln(N/2π) + ln V + ½ ln|I|``: the criterion of Rissanen (1996) with ``∫ √|I(w)| dw`` over
    a neighborhood of volume V in which I is constant. At equal N, W, V and a loss near zero only ``½ γ`` is
    left: the paper's metric.

    Args:
        minimum_loss: ``L₀ = L(S, w₀)``, the mean loss at the minimum.
        gamma: γ = ln|I_S(w₀)|.
        num_parameters: W.
        num_samples: N, the size of the training set.
        log_volume: ln V.

    Returns:
        The criterion, in nats; lower is better.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> from lightning_fisher.functional.fisher.bounds import fia
        >>> sizes = {"num_parameters": 100, "num_samples": 1000, "log_volume": 0.0}
        >>> fia(0.0, gamma=-300.0, **sizes) - fia(0.0, gamma=-500.0, **sizes)
        100.0
    """
    _at_least("num_parameters", num_parameters, 1)
    _at_least("num_samples", num_samples, 1)
    dimension = num_parameters / 2 * math.log(num_samples / (2 * math.pi))
    return num_samples * float(minimum_loss) + dimension + log_volume + float(gamma) / 2


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")

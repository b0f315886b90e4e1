"""Does a measure order networks as their test errors do? Rank correlations and sign errors over runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.functional.ranking.bootstrap import bootstrap_interval
    from lightning_fisher.functional.ranking.correlation import kendall_tau, spearman_rho
    from lightning_fisher.functional.ranking.granulated import GranulatedKendall, granulated_kendall
    from lightning_fisher.functional.ranking.jackknife import jackknife_interval
    from lightning_fisher.functional.ranking.partial import partial_kendall_tau
    from lightning_fisher.functional.ranking.problem import Interval
    from lightning_fisher.functional.ranking.sign_error import RobustSignError, SignError, robust_sign_error

__all__ = [
    "GranulatedKendall",
    "Interval",
    "RobustSignError",
    "SignError",
    "bootstrap_interval",
    "granulated_kendall",
    "jackknife_interval",
    "kendall_tau",
    "partial_kendall_tau",
    "robust_sign_error",
    "spearman_rho",
]

__getattr__, __dir__ = lazy_exports(__name__)

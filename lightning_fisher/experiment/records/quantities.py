"""The quantities of a row: names, units, formats. Terminal, tables, figures and cards all read this table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """One quantity.

    Attributes:
        key: its name in rows.
        name: in tables and sentences.
        unit: empty for a number without one.
        form: of a value among others, where its spread is larger than its last digit.
        detail: of a value by itself, on a terminal or a card; `form` where it is empty.
        symbol: in figures, TeX; `name` where it is empty.
        lower_is_better: whether a lower value is the better one; None where neither is.
    """

    key: str
    name: str
    unit: str = ""
    form: str = "{:.3g}"
    detail: str = ""
    symbol: str = ""
    lower_is_better: bool | None = None

    @property
    def heading(self) -> str:
        """Name and unit, of a column."""
        return _with_unit(self.name, self.unit)

    @property
    def difference(self) -> str:
        """Name and unit of a difference: of two percentages, in points."""
        return _with_unit(self.name, "points" if self.unit == "%" else self.unit)

    @property
    def axis(self) -> str:
        """Symbol and unit, of the axis of a figure."""
        return _with_unit(self.symbol or self.name, self.unit)

    @property
    def better(self) -> str:
        """Which values are the better ones, in words; empty where neither are."""
        return {True: "lower is better", False: "higher is better", None: ""}[self.lower_is_better]

    @property
    def signed(self) -> str:
        """The format of a difference among others."""
        return self.form.replace("{:", "{:+")

    @property
    def signed_detail(self) -> str:
        """The format of a difference by itself."""
        return (self.detail or self.form).replace("{:", "{:+")

    def text(self, value: Any, std: float | None = None) -> str:
        """A value by itself, with its standard deviation where there is one: of one subset there is none."""
        form = self.detail or self.form
        return form.format(value) + (f" ± {form.format(std)}" if std is not None and math.isfinite(std) else "")


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _table(*quantities: Quantity) -> dict[str, Quantity]:
    return {quantity.key: quantity for quantity in quantities}


# The measures of `lightning_fisher.functional.measures` that are no quantity otherwise, which can be shown without
# importing torch: whether lower values are better, by name.
MEASURES: dict[str, bool | None] = {
    **dict.fromkeys(("gamma_rescaled", "gamma_equal_outputs", "gamma_layer", "gamma_filter", "gamma_element"), True),
    **dict.fromkeys(("sensitivity", "layer_sensitivity", "direction"), True),
    **dict.fromkeys(("parameter_norm", "folded_norm", "distance_from_initialization"), True),
    **dict.fromkeys(("spectral_product", "spectral_product_over_margin"), True),
    **dict.fromkeys(("frobenius_product", "frobenius_product_over_margin"), True),
    **dict.fromkeys(("path_norm", "path_norm_over_margin"), True),
    **dict.fromkeys(("output_margin", "input_margin", "feature_margin"), False),
    **dict.fromkeys(("pac_bayes_flatness", "pac_bayes_magnitude_flatness"), True),
    **dict.fromkeys(("average_sharpness_l2", "average_sharpness_linf"), True),
    **dict.fromkeys(("worst_sharpness_l2", "worst_sharpness_linf"), True),
    **dict.fromkeys(("relative_flatness", "fisher_rao_norm", "weighted_hessian_trace", "hessian_trace"), True),
    "gauss_newton_trace": True,
    "gradient_signal_to_noise": False,
    "gradient_noise_scale": None,
    "participation_ratio": None,
    "evidence_log_det": True,
}
WORDS = {
    "gamma": "γ̂",
    "pac": "PAC-Bayes",
    "bayes": "",
    "hessian": "Hessian",
    "linf": "ℓ∞",
    "l2": "ℓ2",
    "gauss": "Gauss–Newton",
    "newton": "",
    "fisher": "Fisher–Rao",
    "rao": "",
    "frobenius": "Frobenius",
}
FORMS = {
    "gamma_rescaled": "γ̂, s = 0.04",
    "gamma_equal_outputs": "γ̂ at equal outputs",
    "gamma_layer": "γ̂ at equal outputs, by layers",
    "gamma_filter": "γ̂ at equal outputs, by filters",
    "gamma_element": "γ̂ at equal outputs, by weights",
    "sensitivity": "sensitivity part, s = 0.04",
    "layer_sensitivity": "sensitivity part by layers",
    "direction": "direction part, s = 0.04",
}


def measure_name(key: str) -> str:
    """The name of a measure in tables."""
    words = (WORDS.get(word, word) for word in key.split("_"))
    return FORMS.get(key) or " ".join(filter(None, words))


QUANTITIES = _table(
    Quantity("train_loss", "training loss", "nats", detail="{:.5f}", lower_is_better=True),
    Quantity("train_error", "training error", "%", "{:.2f}", lower_is_better=True),
    Quantity("train_error_top5", "training error, top-5", "%", "{:.2f}", lower_is_better=True),
    Quantity("val_loss", "validation loss", "nats", detail="{:.4f}", lower_is_better=True),
    Quantity("val_error", "validation error", "%", "{:.2f}", lower_is_better=True),
    Quantity("test_loss", "test loss", "nats", detail="{:.4f}", lower_is_better=True),
    Quantity("test_error", "test error", "%", "{:.2f}", lower_is_better=True),
    Quantity("test_error_top5", "test error, top-5", "%", "{:.2f}", lower_is_better=True),
    Quantity("test_calibration_error", "calibration error", "%", "{:.2f}", lower_is_better=True),
    Quantity("gamma", "γ̂", "nats", "{:.1f}", "{:.2f}", r"$\hat\gamma$", True),
    *(
        Quantity(f"gamma_{part}", f"γ̂, {part} part", "nats", "{:.1f}", "{:.2f}", rf"$\hat\gamma$, {part} part", True)
        for part in ("residual", "sensitivity", "magnitude", "direction")
    ),
    Quantity("robustness", "robustness", detail="{:.4g}", lower_is_better=True),
    Quantity("frobenius_norm", "Frobenius norm", detail="{:.4g}", lower_is_better=True),
    Quantity("spectral_radius", "spectral radius", detail="{:.4g}", lower_is_better=True),
    Quantity("hessian_frobenius_norm", "Frobenius norm of the Hessian", detail="{:.4g}", lower_is_better=True),
    Quantity("hessian_spectral_radius", "spectral radius of the Hessian", detail="{:.4g}", lower_is_better=True),
    Quantity("epochs", "epochs", form="{:.0f}"),
    Quantity("stop_reason", "stopped by", form="{}"),
    Quantity("fit_seconds", "fit", "s", "{:.0f}", "{:.1f}", lower_is_better=True),
    Quantity("step_ms_plain", "plain step", "ms", "{:.1f}", lower_is_better=True),
    Quantity("step_ms_regularized", "regularized step", "ms", "{:.1f}", lower_is_better=True),
    Quantity("peak_memory_mib", "peak memory", "MiB", "{:.0f}", lower_is_better=True),
    *(Quantity(key, measure_name(key), form="{:.4g}", lower_is_better=lower) for key, lower in MEASURES.items()),
    # of an epoch
    Quantity("lr", "learning rate"),
    Quantity("fisher/penalty", "penalty", "nats", "{:.2e}", symbol=r"$R_\alpha$", lower_is_better=True),
    Quantity("fisher/grad_cosine", "mean pairwise cosine"),
)
"""By the names of the values in rows and records."""

# Sec. 7.1, and what γ̂ is made of.
PARTS = ("gamma_residual", "gamma_sensitivity", "gamma_magnitude", "gamma_direction")
METRICS = ("gamma", *PARTS, "robustness", "frobenius_norm", "spectral_radius")
# What cards put first: the measures that pointed the right way in all three scenarios (docs/results-scenarios.md), and
# of those the one first that does so in the zoo, too (docs/zoo-results.md).
FIRST = ("gamma_equal_outputs", "layer_sensitivity")
HESSIAN_METRICS = ("hessian_frobenius_norm", "hessian_spectral_radius")

"""Every measure by name, with what it costs, which way it points and what leaves it unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lightning_fisher.arguments import suggestion
from lightning_fisher.functional.curvature.input_jacobian import robustness
from lightning_fisher.functional.curvature.norms import frobenius_norm, hessian_spectral_radius, spectral_radius
from lightning_fisher.functional.fisher.log_determinant import FisherLogDet
from lightning_fisher.functional.measures.gradient_statistics import (
    evidence_log_det,
    fisher_rao_norm,
    gradient_noise_scale,
    gradient_signal_to_noise,
    participation_ratio,
)
from lightning_fisher.functional.measures.hessian_flatness import relative_flatness
from lightning_fisher.functional.measures.hessian_traces import HessianTraces, Method
from lightning_fisher.functional.measures.margins import median_margin, output_margin
from lightning_fisher.functional.measures.norms import (
    distance_from_initialization,
    folded_norm,
    log_frobenius_product,
    log_spectral_product,
    parameter_norm,
)
from lightning_fisher.functional.measures.pac_bayes import pac_bayes_flatness, pac_bayes_magnitude_flatness
from lightning_fisher.functional.measures.path_norms import path_norm
from lightning_fisher.functional.measures.sharpness import average_sharpness, worst_sharpness

Rescaling = Literal["layers", "units", "batch_norm", "logits"]
GROUPS = ("recommended", "paper", "forms", "all")
RESCALED = 0.04  # s of the rescaled logits, of Sec. 7.2.3
FUNCTION: frozenset[Rescaling] = frozenset({"layers", "units", "batch_norm"})  # those that leave the function unchanged
EVERYTHING: frozenset[Rescaling] = FUNCTION | {"logits"}
WHOLE_LAYERS: frozenset[Rescaling] = frozenset({"layers", "batch_norm"})
BATCH_NORM: frozenset[Rescaling] = frozenset({"batch_norm"})
NOTHING: frozenset[Rescaling] = frozenset()


@dataclass(frozen=True)
class Measure:
    """A measure of generalization, declared.

    Attributes:
        name: In configs and results.
        function: The pure function.
        needs: What it is called with, by name: ``module``, ``inputs``, ``targets``; ``initial``, the network before
            training; ``folded``, of `fold_batch_norm`; ``matrices``, of `weight_matrices`; ``margin``, of
            `output_margin`; ``traces``, a `HessianTraces`; ``fisher``, of `fisher_log_det`; ``gram``, of `gram_matrix`;
            ``log_eigenvalues``, of `log_spectrum`; ``rescaled``, of `fisher_log_det` at rescaled logits, s = 0.04, and
            ``rescaled_layer``, ``rescaled_filter``, ``rescaled_element`` of that ``scale`` at equal outputs.
        higher_is_better: Which way its source says it points; ``None``: it doesn't say.
        invariances: Rescalings that leave it unchanged, in exact arithmetic. ``"layers"``: of whole layers of a ReLU
            network (one by c, the next by 1/c); ``"units"``: of single hidden units; ``"batch_norm"``: of weights in
            front of batch-norm, its statistics following; ``"logits"``: of the last layer, which leaves the decisions
            unchanged.
        formula: What it computes.
        source: Who proposed it.
        cost: In passes over the samples.
        fails: What it is known to get wrong.
        recommended: Cheap and unchanged by everything that leaves the function unchanged.
        paper: One of the four of Sec. 7.1.
        form: A form of γ̂, or a part of it.
        defaults: Keyword arguments that make it this measure.
    """

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    higher_is_better: bool | None
    invariances: frozenset[Rescaling]
    formula: str
    source: str
    cost: str
    fails: str
    recommended: bool = False
    paper: bool = False
    form: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> tuple[str, ...]:
        """The keyword arguments of the function that a caller may set."""
        return tuple(
            name
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        )

    def __call__(self, *needed: Any, **options: Any) -> Tensor:
        """The measure as a float64 scalar.

        Args:
            needed: What ``needs`` names, in that order.
            options: Keyword arguments of ``function``.
        """
        result = self.function(*needed, **{**self.defaults, **options})
        return (result if isinstance(result, Tensor) else result.value).double()


def _log_det(fisher: FisherLogDet) -> Tensor:
    return fisher.log_det


def _equal_outputs(fisher: FisherLogDet) -> Tensor:
    return fisher.sensitivity + fisher.direction


def _sensitivity(fisher: FisherLogDet) -> Tensor:
    return fisher.sensitivity


def _direction(fisher: FisherLogDet) -> Tensor:
    return fisher.direction


def _hessian_trace(traces: HessianTraces, *, num_products: int = 60, seed: int = 0, method: Method = "auto") -> Tensor:
    return traces.hessian("none", num_products=num_products, seed=seed, method=method).value


def _weighted_hessian_trace(
    traces: HessianTraces, *, num_products: int = 60, seed: int = 0, method: Method = "auto"
) -> Tensor:
    return traces.hessian("element", num_products=num_products, seed=seed, method=method).value


def _gauss_newton_trace(traces: HessianTraces) -> Tensor:
    return traces.gauss_newton("none")


DATA = ("module", "inputs", "targets")
A_FOLD = "batch-norm folded: a forward pass of 4 samples a layer"
DRAWS = "up to 150 forward passes"
PRODUCTS = "K forward and backward passes for ReLU networks, otherwise 120 backward passes"
STEPS = "21 forward and backward passes"
A_GRAM = "one Gram matrix: about 1.4 forward and backward passes"

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "gamma", _log_det, ("fisher",), False, NOTHING, "ln|ξ|", "Jia & Su 2020", A_GRAM,
            "follows the loss where training losses differ",
            paper=True, form=True,
        ),
        Measure(
            "gamma_rescaled", _log_det, ("rescaled",), False, NOTHING, "ln|ξ|, logits rescaled", "Jia & Su 2020",
            A_GRAM, "follows the margins where the networks fit", form=True,
        ),
        Measure(
            "gamma_equal_outputs", _equal_outputs, ("rescaled",), False, NOTHING, "ln|G|, logits rescaled", "own",
            A_GRAM, "scale of weights; a temperature leaves it unchanged", form=True,
        ),
        Measure(
            "gamma_layer", _log_det, ("rescaled_layer",), False, WHOLE_LAYERS | {"logits"},
            "ln|Σ_l ‖W_l‖_F² G_l|, logits rescaled", "own", "that of gamma_rescaled: the same pass",
            "weak, or the wrong way, over augmentations", form=True,
        ),
        Measure(
            "gamma_filter", _log_det, ("rescaled_filter",), False, WHOLE_LAYERS | {"logits"},
            "ln|G|, gradients times ‖w_unit‖₂, logits rescaled", "own", A_GRAM,
            "nothing, or the wrong way, over augmentations", form=True,
        ),
        Measure(
            "gamma_element", _log_det, ("rescaled_element",), False, EVERYTHING,
            "ln|G|, gradients times |w|, logits rescaled", "own", A_GRAM + ", from per-sample gradients",
            "nothing, or the wrong way, over augmentations", form=True,
        ),
        Measure(
            "sensitivity", _sensitivity, ("rescaled",), False, NOTHING, "Σ_j ln G_jj, logits rescaled", "own", A_GRAM,
            "scale of weights", form=True,
        ),
        Measure(
            "layer_sensitivity", _sensitivity, ("rescaled_layer",), False, WHOLE_LAYERS | {"logits"},
            "Σ_j ln Σ_l ‖W_l‖_F² G_l,jj, logits rescaled", "own", "that of gamma_rescaled: the same pass",
            "changes when units are rescaled", form=True,
        ),
        Measure(
            "direction", _direction, ("rescaled",), False, NOTHING, "ln|C|, logits rescaled", "own", A_GRAM,
            "the wrong way over batch sizes and augmentations", form=True,
        ),
        Measure(
            "frobenius_norm", frobenius_norm, ("gram",), False, NOTHING, "‖ξ‖_F² / N²", "Wu et al. 2017", A_GRAM,
            "follows the loss; scale of weights and logits", paper=True,
        ),
        Measure(
            "spectral_radius", spectral_radius, ("gram",), False, NOTHING, "λ_max(ξ) / N", "Keskar et al. 2017", A_GRAM,
            "follows the loss; scale of weights and logits", paper=True,
        ),
        Measure(
            "robustness", robustness, ("module", "inputs"), False, FUNCTION, "1/N Σ ‖∂ softmax(z)/∂x‖_σ²",
            "Sokolić et al. 2017", "K backward passes", "vanishes where the network is sure", paper=True,
        ),
        Measure(
            "parameter_norm", parameter_norm, ("module",), False, NOTHING, "‖w‖₂", "baseline", "none",
            "grows with the length of training; points the wrong way across widths",
        ),
        Measure(
            "folded_norm", folded_norm, ("folded", "inputs"), False, BATCH_NORM, "√Σ_l ‖W_l‖_F²",
            "Dziugaite et al. 2020", A_FOLD, "points the wrong way across widths",
        ),
        Measure(
            "distance_from_initialization", distance_from_initialization, ("module", "inputs", "initial"), False,
            BATCH_NORM, "√Σ_l ‖W_l − W_l⁰‖_F²", "Nagarajan & Kolter 2019", A_FOLD + ", twice",
            "needs the initial weights; grows with the length of training",
        ),
        Measure(
            "spectral_product", log_spectral_product, ("matrices",), False, WHOLE_LAYERS, "Σ_l ln ‖W_l‖_σ²",
            "Bartlett et al. 2017", A_FOLD + "; one eigenvalue a layer",
            "points the wrong way across depths: a baseline",
        ),
        Measure(
            "spectral_product_over_margin", log_spectral_product, ("matrices", "margin"), False,
            WHOLE_LAYERS | {"logits"}, "Σ_l ln ‖W_l‖_σ² − 2 ln γ", "Bartlett et al. 2017",
            A_FOLD + "; one eigenvalue a layer; a forward pass", "points the wrong way across depths: a baseline",
        ),
        Measure(
            "frobenius_product", log_frobenius_product, ("matrices",), False, WHOLE_LAYERS, "Σ_l ln ‖W_l‖_F²",
            "Neyshabur et al. 2015", A_FOLD, "follows the depth: a baseline",
        ),
        Measure(
            "frobenius_product_over_margin", log_frobenius_product, ("matrices", "margin"), False,
            WHOLE_LAYERS | {"logits"}, "Σ_l ln ‖W_l‖_F² − 2 ln γ", "Neyshabur et al. 2015", A_FOLD + "; a forward pass",
            "follows the depth: a baseline",
        ),
        Measure(
            "path_norm", path_norm, ("folded", "inputs"), False, FUNCTION, "Σ_k f_{w²}(1)_k", "Neyshabur et al. 2015",
            A_FOLD + "; three of one sample", "piecewise linear networks only; perfectly wrong in some environments",
            recommended=True,
        ),
        Measure(
            "path_norm_over_margin", path_norm, ("folded", "inputs", "margin"), False, EVERYTHING,
            "Σ_k f_{w²}(1)_k / γ²", "Neyshabur et al. 2015", A_FOLD + "; three of one sample; a forward pass",
            "piecewise linear networks only; infinite where more than 10 % of the samples are misclassified",
            recommended=True,
        ),
        Measure(
            "output_margin", output_margin, DATA, True, FUNCTION, "γ: 10 % quantile of z_y − max z_k",
            "Bartlett et al. 2017", "a forward pass", "follows the logits' scale",
        ),
        Measure(
            "input_margin", median_margin, DATA, True, EVERYTHING, "median of (z_y − z_j)/‖∇_x (z_y − z_j)‖₂",
            "Jiang et al. 2019", "a forward and a backward pass", "inputs must be numbers; first order only",
            recommended=True, defaults={"at": "input"},
        ),
        Measure(
            "feature_margin", median_margin, DATA, True, WHOLE_LAYERS | {"logits"},
            "median of (z_y − z_j)/‖∇_φ (z_y − z_j)‖₂ / √tr Cov(φ)", "Jiang et al. 2019",
            "a forward and a backward pass", "changes when units are rescaled",
            defaults={"at": "features", "spread": True},
        ),
        Measure(
            "pac_bayes_flatness", pac_bayes_flatness, DATA, False, BATCH_NORM, "1/σ²", "Jiang et al. 2020",
            A_FOLD + "; " + DRAWS, "sampling noise of 10 % and more; changes when ReLU layers are rescaled",
        ),
        Measure(
            "pac_bayes_magnitude_flatness", pac_bayes_magnitude_flatness, DATA, False, EVERYTHING, "1/σ′²",
            "Jiang et al. 2020", A_FOLD + "; " + DRAWS, "sampling noise of 10 to 20 %; weights of zero get no noise",
        ),
        Measure(
            "average_sharpness_l2", average_sharpness, DATA, False, EVERYTHING, "E_z L(w + ρ|w|∘z) − L(w), z normal",
            "Andriushchenko et al. 2023", "101 forward passes", "sampling noise at small ρ; depends on ρ",
            defaults={"norm": "l2", "rho": 0.4},
        ),
        Measure(
            "average_sharpness_linf", average_sharpness, DATA, False, EVERYTHING, "E_z L(w + ρ|w|∘z) − L(w), z uniform",
            "Andriushchenko et al. 2023", "101 forward passes", "sampling noise at small ρ; depends on ρ",
            defaults={"norm": "linf", "rho": 0.4},
        ),
        Measure(
            "worst_sharpness_l2", worst_sharpness, DATA, False, EVERYTHING, "max L(w + |w|∘u) − L(w), ‖u‖₂ ≤ ρ",
            "Kwon et al. 2021", STEPS, "a lower bound of the maximum; depends on ρ",
            defaults={"norm": "l2", "rho": 0.5},
        ),
        Measure(
            "worst_sharpness_linf", worst_sharpness, DATA, False, EVERYTHING, "max L(w + |w|∘u) − L(w), ‖u‖_∞ ≤ ρ",
            "Kwon et al. 2021", STEPS, "a lower bound of the maximum; depends on ρ",
            defaults={"norm": "linf", "rho": 0.01},
        ),
        Measure(
            "relative_flatness", relative_flatness, DATA, False, FUNCTION,
            "Σ_{s,s′} ⟨w_s, w_s′⟩ tr H_{s,s′}, last layer", "Petzka et al. 2021", "a forward pass",
            "last layer only, which must be linear; follows the logits' scale",
            recommended=True,
        ),
        Measure(
            "fisher_rao_norm", fisher_rao_norm, DATA, False, FUNCTION, "√(wᵀ I_S w)", "Liang et al. 2019",
            "a forward and two backward passes", "follows the loss and the logits' scale", recommended=True,
        ),
        Measure(
            "weighted_hessian_trace", _weighted_hessian_trace, ("traces",), False, FUNCTION, "Σ_i w_i² H_ii",
            "Andriushchenko et al. 2023", PRODUCTS, "follows the loss and the logits' scale",
        ),
        Measure(
            "hessian_trace", _hessian_trace, ("traces",), False, NOTHING, "tr ∇²L", "baseline", PRODUCTS,
            "changes with every rescaling",
        ),
        Measure(
            "gauss_newton_trace", _gauss_newton_trace, ("traces",), False, NOTHING,
            "tr G; tr ∇²L for ReLU networks", "baseline", "K forward and backward passes",
            "changes with every rescaling",
        ),
        Measure(
            "hessian_spectral_radius", hessian_spectral_radius, DATA, False, NOTHING, "max |λ(∇²L)|",
            "Keskar et al. 2017", "up to 100 Hessian-vector products: 200 backward passes",
            "changes with every rescaling",
        ),
        Measure(
            "gradient_signal_to_noise", gradient_signal_to_noise, DATA, True, FUNCTION, "mean of g_i²/σ_i²",
            "Liu et al. 2020", "N forward and backward passes of one sample",
            "says little at a minimum, where g vanishes",
        ),
        Measure(
            "gradient_noise_scale", gradient_noise_scale, ("gram",), None, NOTHING, "tr Σ̂ / ‖g‖²",
            "McCandlish et al. 2018", A_GRAM, "diverges at a minimum; made to choose batch sizes",
        ),
        Measure(
            "participation_ratio", participation_ratio, ("gram",), None, NOTHING, "(Σ λ)² / Σ λ², λ of ξ", "baseline",
            A_GRAM, "its direction is open; changes with every rescaling",
        ),
        Measure(
            "evidence_log_det", evidence_log_det, ("log_eigenvalues",), False, NOTHING, "ln|I + ξ/δ|", "MacKay 1992",
            A_GRAM, "follows the loss; δ has to be chosen, and compared at equal δ",
        ),
    )
}  # fmt: skip


def select_measures(names: str | Sequence[str]) -> list[Measure]:
    """The measures of a name, a group or several of them, each once, in the order of `MEASURES`.

    Args:
        names: Names of `MEASURES`, or of groups: ``"recommended"`` (cheap, and unchanged by everything that leaves the
            function unchanged), ``"paper"`` (the four of Sec. 7.1), ``"forms"`` (of γ̂), ``"all"``.

    Returns:
        The measures.

    Raises:
        ValueError: If a name is unknown, or there is none.

    Example:
        >>> from lightning_fisher.functional.measures import select_measures
        >>> [measure.name for measure in select_measures(["paper", "fisher_rao_norm"])]
        ['gamma', 'frobenius_norm', 'spectral_radius', 'robustness', 'fisher_rao_norm']
    """
    chosen = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in chosen if name not in MEASURES and name not in GROUPS]
    if unknown or not chosen:
        raise ValueError(
            f"Expected argument `measures` to name measures or groups out of {(*GROUPS, *MEASURES)}, "
            f"but got {unknown or chosen}.{suggestion(next(iter(unknown), None), (*GROUPS, *MEASURES))}"
        )
    return [
        measure
        for measure in MEASURES.values()
        if measure.name in chosen or any(group in chosen for group in groups_of(measure))
    ]


def groups_of(measure: Measure) -> tuple[str, ...]:
    """The names of the groups that a measure is in."""
    flags = {"recommended": measure.recommended, "paper": measure.paper, "forms": measure.form, "all": True}
    return tuple(group for group in GROUPS if flags[group])

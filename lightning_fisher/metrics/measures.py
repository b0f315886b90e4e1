"""Measures of generalization over subsets, any of them by name, shared intermediate results computed once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_positive
from lightning_fisher.exceptions import NonFiniteError, SecondDerivativeError, UndefinedMeasureError
from lightning_fisher.functional.fisher.decided import decided_gram, total_of
from lightning_fisher.functional.fisher.log_determinant import FisherLogDet, log_det_of
from lightning_fisher.functional.fisher.spectrum import log_spectrum
from lightning_fisher.functional.gram.rules.parameter_scale import Scale, squared_norms
from lightning_fisher.functional.measures import MEASURES, Measure, fold_batch_norm, output_margin, select_measures
from lightning_fisher.functional.measures.folding import matrices_of_folded
from lightning_fisher.functional.measures.hessian_traces import HessianTraces
from lightning_fisher.functional.measures.registry import RESCALED
from lightning_fisher.metrics.base import SubsetMetric, mean_and_std
from lightning_fisher.metrics.sharing import shared_log_det


class MeasureMetric(SubsetMetric):
    r"""Measures of generalization by name, averaged over subsets of training samples.

    What several measures need (the network with batch-norm folded in, one Gram matrix, the margin) is computed once a
    subset. The measures, their formulas, costs and invariances are those of
    `lightning_fisher.functional.measures.MEASURES`; the networks are classifiers that return logits ``[N, K]``, trained
    with the cross-entropy.

    As input to ``update(module, inputs, targets)``: one subset of N′ un-augmented training samples. ``compute()``
    returns a dict of float64 scalars: for every measure its mean over the subsets and, as ``…_std``, its sample
    standard deviation (``nan`` for T = 1). A measure that is not defined for the network (a path norm with layer norm,
    a Hessian of a layer without a second derivative), or whose outputs or gradients are not finite, counts as ``nan``,
    with a warning; the others are computed.

    Args:
        measures: Names of measures, or of groups: ``"recommended"`` (cheap, and unchanged by every rescaling that
            leaves the function unchanged), ``"paper"`` (the four of Sec. 7.1), ``"forms"`` (of γ̂), ``"all"``.
        initial: The network before training, or its ``state_dict()``, for ``distance_from_initialization``. Without it
            a group leaves that measure out.
        options: Keyword arguments of the functions, by measure: ``{"average_sharpness_l2": {"rho": 0.1}}``.
        logit_norm: ``s`` of ``z ← z / (s‖z‖₂)`` (Sec. 7.2.3) in the Gram matrix; ``None``: as is. The other measures
            are always of the network as it is.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Attributes:
        measures: The measures chosen.
        seconds: Time that each took so far, in seconds; what several share counts for the first of them.

    Raises:
        ValueError: If a measure or an option is unknown, or ``initial`` is missing.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import MeasureMetric
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> metric = MeasureMetric(["fisher_rao_norm", "input_margin"])
        >>> for _ in range(3):
        ...     metric.update(net, torch.randn(8, 4), torch.randint(3, (8,)))
        >>> sorted(metric.compute())
        ['fisher_rao_norm', 'fisher_rao_norm_std', 'input_margin', 'input_margin_std']
    """

    def __init__(
        self,
        measures: str | Sequence[str] = "recommended",
        initial: nn.Module | Mapping[str, Tensor] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        logit_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        require_positive("logit_norm", logit_norm, or_none=True)
        self.measures = _selected(measures, initial)
        self.states = tuple(measure.name for measure in self.measures)  # type: ignore[misc]
        super().__init__(**kwargs)
        self.options = _checked_options(options or {}, self.measures)
        self.logit_norm = logit_norm
        if isinstance(initial, nn.Module):
            initial = initial.state_dict()
        # Not a submodule or a buffer, which would be converted with the metric.
        self.seconds: dict[str, float] = dict.fromkeys(self.states, 0.0)
        self._initial = None if initial is None else {k: v.detach().cpu().clone() for k, v in initial.items()}

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Whether larger values are better; ``None`` where the measures chosen differ, or one doesn't say."""
        directions = {measure.higher_is_better for measure in self.measures}
        return directions.pop() if len(directions) == 1 else None

    def update(self, module: nn.Module, inputs: Any, targets: Any) -> None:
        """Add one subset; ``module`` is left unchanged.

        Args:
            module: The network, in any mode.
            inputs: N′ un-augmented training samples: a tensor, a tuple (``module(*inputs)``) or a dict
                (``module(**inputs)``), samples in dimension 0.
            targets: Class indices ``[N′]``.
        """
        with torch.inference_mode(False):
            subset = _Subset(module, inputs, targets, self._initial, self.logit_norm)
            values = {}
            for measure in self.measures:
                started = time.perf_counter()
                values[measure.name] = self._value(measure, subset).detach().cpu()
                self.seconds[measure.name] += time.perf_counter() - started
            self.add_subset(**values)

    def compute(self) -> dict[str, Tensor]:
        """Mean and spread of every measure over all subsets of all processes."""
        result = {}
        for name in self.states:
            result[name], result[f"{name}_std"] = mean_and_std(self.subsets(name))
        return result

    def _value(self, measure: Measure, subset: _Subset) -> Tensor:
        try:
            return measure(*(getattr(subset, name) for name in measure.needs), **self.options.get(measure.name, {}))
        except (NonFiniteError, SecondDerivativeError, UndefinedMeasureError) as error:
            reason = str(error)
        except RuntimeError as error:  # a layer without a second derivative
            if "not implemented" not in str(error):
                raise
            reason = f"{str(error).splitlines()[0].rstrip('.')}."
        warnings.warn(f"{reason} {type(self).__name__} counts {measure.name} as nan.", stacklevel=4)
        return torch.tensor(torch.nan, dtype=torch.float64)


class _Subset:
    """What the measures of one subset need, each computed when it is first asked for."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Any,
        targets: Any,
        initial: Mapping[str, Tensor] | None,
        logit_norm: float | None,
    ) -> None:
        self.module, self.inputs, self.targets, self.initial = module, inputs, targets, initial
        self._logit_norm = logit_norm

    @cached_property
    def folded(self) -> nn.Module:
        return fold_batch_norm(self.module, self.inputs)

    @cached_property
    def matrices(self) -> dict[str, Tensor]:
        return matrices_of_folded(self.folded)

    @cached_property
    def traces(self) -> HessianTraces:
        return HessianTraces(self.module, self.inputs, self.targets)

    @cached_property
    def margin(self) -> Tensor:
        return output_margin(self.module, self.inputs, self.targets)

    @cached_property
    def fisher(self) -> FisherLogDet:
        return shared_log_det(self.module, self.inputs, self.targets, logit_norm=self._logit_norm, rank_policy="pseudo")

    @cached_property
    def _rescaled(self) -> tuple[FisherLogDet, FisherLogDet]:
        """Unweighted, and weighted by layers at equal outputs, from one pass that keeps the parameters apart."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        numbers = tuple(range(len(parameters)))
        how: dict[str, Any] = {"logit_norm": RESCALED, "groups": numbers}
        apart = decided_gram(self.module, self.inputs, self.targets, how, None)
        norms = torch.tensor(squared_norms(parameters), dtype=torch.float64, device=apart.gram.device)
        layers = apart._replace(
            gram=torch.einsum("p,pij->ij", norms, apart.gram),
            log_scales=apart.log_scales - apart.log_residuals,
            log_residuals=torch.zeros_like(apart.log_residuals),
            values=None,
        )
        return log_det_of(total_of(apart), rank_policy="pseudo"), log_det_of(layers, rank_policy="pseudo")

    @property
    def rescaled(self) -> FisherLogDet:
        return self._rescaled[0]

    @property
    def rescaled_layer(self) -> FisherLogDet:
        return self._rescaled[1]

    @cached_property
    def rescaled_filter(self) -> FisherLogDet:
        return self._scaled("filter")

    @cached_property
    def rescaled_element(self) -> FisherLogDet:
        return self._scaled("element")

    def _scaled(self, scale: Scale) -> FisherLogDet:
        how: dict[str, Any] = {"logit_norm": RESCALED, "residual": False, "scale": scale, "rank_policy": "pseudo"}
        return shared_log_det(self.module, self.inputs, self.targets, **how)

    @cached_property
    def gram(self) -> Tensor:
        norms = self.fisher.log_norms.exp()
        return self.fisher.gram * torch.outer(norms, norms)

    @cached_property
    def log_eigenvalues(self) -> Tensor:
        return log_spectrum(self.fisher.gram, self.fisher.log_norms, rank=int(self.fisher.rank))


def _selected(names: str | Sequence[str], initial: object) -> tuple[Measure, ...]:
    named = [names] if isinstance(names, str) else list(names)
    selected = []
    for measure in select_measures(names):
        if "initial" in measure.needs and initial is None:
            if measure.name in named:
                raise ValueError(
                    f"Expected argument `initial` to be the network before training, which {measure.name} needs, "
                    "but got None."
                )
            continue
        selected.append(measure)
    return tuple(selected)


def _checked_options(
    options: Mapping[str, Mapping[str, Any]], measures: Sequence[Measure]
) -> dict[str, dict[str, Any]]:
    names = tuple(measure.name for measure in measures)
    for name, chosen in options.items():
        if name not in names:
            raise ValueError(f"Expected argument `options` to name measures out of {names}, but got {name!r}.")
        if unknown := sorted(set(chosen) - set(MEASURES[name].options)):
            raise ValueError(
                f"Expected the options of {name} to be out of {MEASURES[name].options}, but got {unknown}."
            )
    return {name: dict(chosen) for name, chosen in options.items()}

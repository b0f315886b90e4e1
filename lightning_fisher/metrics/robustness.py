"""Robustness over subsets."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from lightning_fisher.arguments import require_choice, require_integer, require_positive
from lightning_fisher.functional.curvature.input_jacobian import Method, robustness
from lightning_fisher.functional.evaluation.samples import num_samples
from lightning_fisher.metrics.base import SubsetMetric, mean_and_std


class RobustnessMetric(SubsetMetric):
    r"""Squared spectral norm of the input Jacobian, ``1/N Σ_x ‖J_x f_w(x)‖₂²`` (Sec. 7.1); lower is better.

    ``f_w`` is the softmax output (Sokolić et al. 2017), see
    :func:`~lightning_fisher.functional.robustness.robustness`. An update costs K backward passes of the subset
    for K ≤ 64 classes, and a power iteration with two passes a step beyond.

    ``compute()`` returns float64 scalars: ``robustness``, the mean over all samples, and ``robustness_std``, the
    sample standard deviation of the subsets' means (``nan`` for T = 1).

    Args:
        method: ``"auto"`` (exact for K ≤ 64), ``"exact"`` or ``"power"``.
        tol: Relative residual at which power iteration stops.
        max_iter: Steps of power iteration at most.
        seed: Of the start vectors of power iteration.
        chunk_size: Samples at a time; ``None``: the whole subset.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is not one of its allowed values.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import RobustnessMetric
        >>> metric = RobustnessMetric()
        >>> metric.update(torch.nn.Linear(4, 3), torch.randn(5, 4))
        >>> sorted(metric.compute())
        ['robustness', 'robustness_std']
    """

    states: ClassVar[tuple[str, ...]] = ("robustness", "subset_size")

    def __init__(
        self,
        method: Method = "auto",
        tol: float = 1e-3,
        max_iter: int = 100,
        seed: int = 0,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_choice("method", method, get_args(Method))
        require_positive("tol", tol)
        require_integer("max_iter", max_iter, 1)
        require_integer("chunk_size", chunk_size, 1, or_none=True)
        self.method: Method = method
        self.tol = tol
        self.max_iter = max_iter
        self.seed = seed
        self.chunk_size = chunk_size

    def update(self, module: nn.Module, inputs: Any, targets: Any = None) -> None:
        """Add one subset; ``module`` is left unchanged.

        Args:
            module: The network, returning logits ``[N′, K]``.
            inputs: N′ un-augmented training samples, see `FisherMetric.update`.
            targets: Not used; there so that one call updates a whole ``MetricCollection``.
        """
        size = torch.tensor(num_samples(inputs))
        with torch.inference_mode(False), self.non_finite_is_nan(subset_size=size):
            value = robustness(
                module,
                inputs,
                method=self.method,
                tol=self.tol,
                max_iter=self.max_iter,
                seed=self.seed,
                chunk_size=self.chunk_size,
            )
            self.add_subset(robustness=value, subset_size=size)

    def compute(self) -> dict[str, Tensor]:
        """Mean over all samples and spread over all subsets of all processes."""
        values, sizes = self.subsets("robustness"), self.subsets("subset_size")
        return {
            "robustness": (values * sizes).sum() / sizes.sum(),
            "robustness_std": mean_and_std(values)[1],
        }

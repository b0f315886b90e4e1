"""Metrics of one collection, and the log-determinants that several of them need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torchmetrics import MetricCollection

from lightning_fisher.functional.fisher.log_determinant import FisherLogDet, fisher_log_det

_FOUND: ContextVar[dict[Any, FisherLogDet] | None] = ContextVar("log-determinants of the subset", default=None)
DEFAULTS: dict[str, Any] = {
    "loss_fn": None,
    "batch_norm": "eval",
    "chunk_size": None,
    "logit_norm": None,
    "residual": True,
    "scale": "none",
    "rank_policy": "error",
}


@contextmanager
def shared_log_dets() -> Iterator[None]:
    """Within the body every log-determinant of the same objects and options is computed once.

    The body may not change the module, the inputs or the targets.
    """
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)


def shared_log_det(module: nn.Module, inputs: Any, targets: Any, **options: Any) -> FisherLogDet:
    """`fisher_log_det`, or what it returned before within `shared_log_dets`; same arguments."""
    found = _FOUND.get()
    if found is None:
        return fisher_log_det(module, inputs, targets, **options)
    chosen = {**DEFAULTS, **options}
    key = (id(module), id(inputs), id(targets), id(chosen.pop("loss_fn")), *chosen.items())
    if key not in found:
        found[key] = fisher_log_det(module, inputs, targets, **options)
    return found[key]


class SharingCollection(MetricCollection):
    """A ``MetricCollection`` whose metrics share the log-determinants of a subset, compute groups or not.

    Example:
        >>> import torch
        >>> from lightning_fisher.metrics import FisherMetric, MeasureMetric
        >>> from lightning_fisher.metrics.sharing import SharingCollection
        >>> metrics = SharingCollection([FisherMetric(), MeasureMetric("evidence_log_det")])  # one Gram matrix
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
        >>> metrics.update(net, torch.randn(8, 4).double(), torch.randint(3, (8,)))
        >>> [key for key in metrics.compute() if key in ("gamma", "evidence_log_det")]
        ['gamma', 'evidence_log_det']
    """

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update every metric (or the first of each compute group)."""
        with shared_log_dets():
            super().update(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Update, and compute of this subset."""
        with shared_log_dets():
            return super().forward(*args, **kwargs)

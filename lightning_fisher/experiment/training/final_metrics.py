"""Measure a finished network by the local-minima metrics, on all processes together."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_fisher.callbacks import FisherMonitor
from lightning_fisher.metrics import FisherMetric, local_minima_metrics


def network(module: LightningModule) -> nn.Module:
    """The network inside an :class:`~lightning_fisher.module.ImageClassifier`."""
    net = module.net
    assert isinstance(net, nn.Module)
    return net


def make_monitor(metric: DictConfig, which: str, every: int = 1) -> FisherMonitor:
    """Make a monitor of the ``metric`` node.

    Args:
        metric: the ``metric`` node of the config.
        which: ``"gamma"``, or ``"all"`` for the four metrics of Sec. 7.1, which share each Gram matrix.
        every: measure at every n-th validation.
    """
    options = {"logit_norm": metric.logit_norm, "batch_norm": metric.batch_norm, "chunk_size": metric.chunk_size}
    metrics: Metric | MetricCollection = FisherMetric(**options)
    if which == "all":
        metrics = local_minima_metrics(**options, hessian=metric.hessian)
    return FisherMonitor(
        num_subsets=metric.num_subsets,
        subset_size=metric.subset_size,
        every_n_validations=every,
        seed=metric.seed,
        metrics=metrics,
        select_module=network,
    )


class FinalMeasurement(Callback):
    """Measure at the end of the test, where the network is on its device and every process takes part.

    Attributes:
        values: the metrics by name.
        seconds: how long they took.

    Args:
        monitor: what to measure; it is not attached to the trainer itself.
    """

    def __init__(self, monitor: FisherMonitor) -> None:
        super().__init__()
        self.monitor = monitor
        self.values: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """How long the measurement took."""
        return self.monitor.seconds

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure."""
        self.values = {name: float(value) for name, value in self.monitor.measure(trainer, pl_module).items()}

"""Measure a finished network by the local-minima metrics, on all processes together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_fisher.callbacks import FisherMonitor
from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.config.error_messages import name_option
from lightning_fisher.functional.measures import select_measures
from lightning_fisher.metrics import FisherMetric, MeasureMetric, local_minima_metrics
from lightning_fisher.metrics.gram import GramMetric
from lightning_fisher.metrics.sharing import SharingCollection


def network(module: LightningModule) -> nn.Module:
    """The network inside an :class:`~lightning_fisher.module.ImageClassifier`."""
    net = module.net
    assert isinstance(net, nn.Module)
    return net


MEASURED_BY = {
    "FisherMetric": "gamma",
    "FrobeniusNormMetric": "frobenius_norm",
    "SpectralRadiusMetric": "spectral_radius",
    "RobustnessMetric": "robustness",
    "HessianSpectralRadiusMetric": "hessian_spectral_radius",
}
NEEDS_INITIAL = "distance_from_initialization"
GRAM_OPTIONS = ("logit_norm", "batch_norm", "chunk_size", "residual", "scale")  # of the ``metric`` node


def make_metrics(metric: DictConfig, which: str, initial: Mapping[str, Tensor] | None = None) -> MetricCollection:
    """Make the metrics of the ``metric`` node, which share each Gram matrix.

    Args:
        metric: the ``metric`` node of the config.
        which: ``"gamma"``, or ``"all"`` for the four metrics of Sec. 7.1.
        initial: the weights before training, where they are known.

    Raises:
        ConfigError: if a measure is unknown, or needs the weights before training.
    """
    options = {name: metric[name] for name in GRAM_OPTIONS}
    found: list[Metric] = [FisherMetric(**options)] if which == "gamma" else []
    if which == "all":
        found = list(local_minima_metrics(**options, hessian=metric.hessian).values())
    groups = [[type(m).__name__ for m in found if isinstance(m, GramMetric)]]
    groups += [[type(m).__name__] for m in found if not isinstance(m, GramMetric)]
    further = make_measures(metric, {MEASURED_BY.get(type(one).__name__, "") for one in found}, initial)
    if further is not None:
        found.append(further)
        groups.append([type(further).__name__])
    return SharingCollection(found, compute_groups=groups)


def make_measures(
    metric: DictConfig,
    known: Collection[str] = tuple(MEASURED_BY.values()),
    initial: Mapping[str, Tensor] | None = None,
    also: Sequence[str] = (),
) -> MeasureMetric | None:
    """Make the metric of ``metric.measures``; None where none is asked for.

    Args:
        metric: the ``metric`` node of the config.
        known: measures that are there already.
        initial: the weights before training, where they are known.
        also: measures beside those of the config.

    Raises:
        ConfigError: if a measure is unknown, or needs the weights before training.
    """
    wanted = [*([metric.measures] if isinstance(metric.measures, str) else metric.measures), *also]
    if not wanted:
        return None
    try:
        names = [measure.name for measure in select_measures(wanted) if measure.name not in known]
        if initial is None and NEEDS_INITIAL not in wanted:
            names = [name for name in names if name != NEEDS_INITIAL]
        return MeasureMetric(names, initial=initial, logit_norm=metric.logit_norm) if names else None
    except ValueError as error:
        raise ConfigError(name_option("metric", error)) from error


def make_monitor(
    metric: DictConfig, which: str, every: int = 1, initial: Mapping[str, Tensor] | None = None
) -> FisherMonitor:
    """Make a monitor of the ``metric`` node.

    Args:
        metric: the ``metric`` node of the config.
        which: ``"curve"``, γ̂ alone, during training; else see `make_metrics`.
        every: measure at every n-th validation.
        initial: the weights before training, where they are known.

    Raises:
        ConfigError: as `make_metrics`.
    """
    metrics: Metric | MetricCollection = FisherMetric(**{name: metric[name] for name in GRAM_OPTIONS})
    if which != "curve":
        metrics = make_metrics(metric, which, initial)
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

    @property
    def measure_seconds(self) -> dict[str, float]:
        """How long each of the further measures took in this process; what several share counts for the first."""
        metrics = self.monitor.metrics
        found = metrics.values() if isinstance(metrics, MetricCollection) else [metrics]
        return {name: s for one in found if isinstance(one, MeasureMetric) for name, s in one.seconds.items()}

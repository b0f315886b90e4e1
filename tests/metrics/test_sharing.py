"""Metrics of one collection compute each log-determinant once, and share nothing across updates."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher.metrics import FisherMetric, MeasureMetric, local_minima_metrics, sharing
from lightning_fisher.metrics.sharing import SharingCollection
from tests.metrics.subsets import network, subsets


@pytest.fixture
def calls(monkeypatch):
    found = []

    def counted(*args, **options):
        found.append(options)
        return original(*args, **options)

    original = sharing.fisher_log_det
    monkeypatch.setattr(sharing, "fisher_log_det", counted)
    return found


def collection(**options):
    members = list(local_minima_metrics(**options).values())
    return SharingCollection(
        [*members, MeasureMetric(["evidence_log_det", "participation_ratio"], **options)], compute_groups=False
    )


def test_each_log_determinant_once_a_subset(calls):
    metrics = collection()
    for part in subsets(3):
        metrics.update(network(), *part)
    assert len(calls) == 3


def test_values_are_those_of_the_metrics_on_their_own(calls):
    metrics = collection(logit_norm=0.04)
    alone = [FisherMetric(logit_norm=0.04), MeasureMetric("evidence_log_det", logit_norm=0.04)]
    for part in subsets(2):
        metrics.update(network(), *part)
        for metric in alone:
            metric.update(network(), *part)
    values = metrics.compute()
    for metric in alone:
        for key, value in metric.compute().items():
            torch.testing.assert_close(values[key], value, rtol=1e-12, atol=0)


def test_other_options_are_not_shared(calls):
    metrics = SharingCollection(
        {
            "plain": FisherMetric(),
            "rescaled": FisherMetric(logit_norm=0.04),
            "layer": FisherMetric(logit_norm=0.04, residual=False, scale="layer"),
        },
        compute_groups=False,
    )
    metrics.update(network(), *subsets(1)[0])
    assert len(calls) == 3


def test_the_same_tensors_with_other_weights_are_measured_again(calls):
    """What is kept is forgotten after every update: an optimizer steps in place."""
    metrics, net, part = collection(), network(), subsets(1)[0]
    metrics.update(net, *part)
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    metrics.update(net, *part)
    assert len(calls) == 2
    values = metrics["FisherMetric"].subsets("log_det")
    assert abs(float(values[1] - values[0])) > 0.1

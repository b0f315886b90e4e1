"""The measures of a network on a GPU are those of the CPU."""

from __future__ import annotations

import pytest
import torch

from lightning_fisher.functional.measures import MEASURES
from lightning_fisher.metrics import MeasureMetric
from tests.reference.measure_networks import build


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["a", "c"])
def test_all_measures(name):
    net, inputs, targets, initial = build(name)
    expected = MeasureMetric("all", initial=initial).forward(net, inputs, targets)
    metric = MeasureMetric("all", initial=initial).to("cuda")
    found = metric.forward(net.cuda(), inputs.cuda(), targets.cuda())
    for measure in MEASURES:
        torch.testing.assert_close(found[measure].cpu(), expected[measure], rtol=1e-6, atol=0, msg=measure)

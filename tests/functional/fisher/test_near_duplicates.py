"""Samples that nearly coincide: C in float64 knows of their distance only its square, the rows themselves all of it.

The oracle is a QR factorization of J, row by row in float64.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import fisher_log_det, layer_log_dets
from lightning_fisher.metrics import MeasureMetric
from tests.reference.logdet import jacobian_log_det
from tests.reference.plain import gradient_rows


def mlp():
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))


def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.outer(self.inner(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1])

    return Last()


def close(distance):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 5, generator=generator), torch.randint(3, (8,), generator=generator)
    x[1], y[1] = x[0] + distance * torch.randn(5, generator=generator), y[0]
    return x, y


@pytest.mark.parametrize("build", [mlp, recurrent])
@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-6, 1e-7])
def test_the_distance_of_two_samples_counts(build, distance):
    torch.manual_seed(0)
    net, (x, y) = build(), close(distance)
    wide = copy.deepcopy(net).double()
    expected = jacobian_log_det(gradient_rows(wide, x.double(), y, 8, cross_entropy))
    found = fisher_log_det(wide, x.double(), y)
    assert int(found.rank) == 8
    assert found.log_det.item() == pytest.approx(expected.log_det, rel=1e-6)
    assert found.direction.item() == pytest.approx(expected.direction, rel=1e-6)
    with pytest.warns(UserWarning, match="float64"):
        narrow = fisher_log_det(net, x, y)
    assert narrow.log_det.item() == pytest.approx(expected.log_det, rel=1e-6)


def test_equal_samples_stay_equal():
    torch.manual_seed(0)
    net, (x, y) = mlp().double(), close(0.0)
    with pytest.warns(UserWarning, match="rank 7"):
        found = fisher_log_det(net, x.double(), y, rank_policy="pseudo")
    rows = gradient_rows(net, x.double(), y, 8, cross_entropy)
    unit = rows / rows.norm(dim=1, keepdim=True)
    right = torch.linalg.svdvals(unit)[:7].square().log().sum()
    torch.testing.assert_close(found.direction, right, rtol=1e-9, atol=0)


def test_layers_are_unchanged_by_it():
    torch.manual_seed(0)
    net, (x, y) = mlp().double(), close(1e-6)
    layers = layer_log_dets(net, x.double(), y)
    assert int(layers.total.rank) == 8
    assert sum(float(layer.share) for layer in layers.layers.values()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("distance", [1.0, 1e-2])
def test_measures_of_a_float32_network(distance):
    torch.manual_seed(0)
    net, (x, y) = mlp(), close(distance)
    values = {}
    for dtype in (torch.float32, torch.float64):
        metric = MeasureMetric("gamma_rescaled")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.update(copy.deepcopy(net).to(dtype), x.to(dtype), y)
        values[dtype] = metric.compute()["gamma_rescaled"].item()
    assert values[torch.float32] == pytest.approx(values[torch.float64], rel=1e-6)

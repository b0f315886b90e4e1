"""Every measure is unchanged by the rescalings that it declares, and by no other."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_fisher.functional.measures import MEASURES, log_spectral_product, path_norm, weight_matrices
from lightning_fisher.metrics import MeasureMetric
from tests.reference.measure_networks import KINDS, build, rescaled

NAMES = ("a", "b", "c")
RESCALINGS = ("layers", "units", "batch_norm", "logits")


FEW = {
    "average_sharpness_l2": {"num_draws": 3},
    "average_sharpness_linf": {"num_draws": 3},
    "pac_bayes_flatness": {"num_draws": 3},
    "pac_bayes_magnitude_flatness": {"num_draws": 3},
    "hessian_trace": {"num_products": 9},
    "weighted_hessian_trace": {"num_products": 9},
    "hessian_spectral_radius": {"tol": 0.01},
}
pytestmark = pytest.mark.filterwarnings("ignore:The accuracy drop")


def values(net, inputs, targets, initial):
    return MeasureMetric("all", initial=initial, options=FEW).forward(net, inputs, targets)


@pytest.fixture(scope="module")
def ratios():
    """After / before of every measure, by network and rescaling."""
    result = {}
    for name in NAMES:
        net, inputs, targets, initial = build(name)
        before = values(net, inputs, targets, initial)
        for kind, twin in rescaled(name, net).items():
            after = values(twin, inputs, targets, initial)
            result[name, kind] = {measure: float(after[measure] / before[measure]) for measure in MEASURES}
    return result


@pytest.mark.parametrize("name", NAMES)
def test_the_rescalings_leave_the_function_unchanged(name):
    net, inputs, _, _ = build(name)
    assert sum(kind in RESCALINGS for kind in KINDS[name]) == len(KINDS[name]) >= 3
    for kind, twin in rescaled(name, net).items():
        torch.testing.assert_close(twin(inputs), net(inputs) * (2 if kind == "logits" else 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", RESCALINGS)
def test_declared_invariances_hold_and_no_others(ratios, measure, kind):
    found = [ratios[name, kind][measure] for name in NAMES if (name, kind) in ratios]
    if kind in MEASURES[measure].invariances:
        assert found == pytest.approx([1.0] * len(found), abs=1e-9)
    else:
        assert max(abs(ratio - 1) for ratio in found) > 1e-3


def test_recommended_is_unchanged_by_all_that_leaves_the_function_unchanged():
    recommended = [measure for measure in MEASURES.values() if measure.recommended]
    assert len(recommended) >= 4
    for measure in recommended:
        assert measure.invariances >= {"layers", "units", "batch_norm"}


@torch.no_grad()
def test_a_batch_norm_behind_a_sum_is_a_layer_of_its_own():
    """All that feeds ``bn1`` and ``bn3`` times four, their statistics following: nothing is folded there."""
    net, inputs, *_ = build("c")
    twin = copy.deepcopy(net)
    twin.conv0.weight.mul_(4)
    twin.conv2.weight.mul_(4)
    for norm in (twin.bn1, twin.bn3):
        norm.running_mean.mul_(4)
        norm.running_var.copy_(16 * (norm.running_var + norm.eps) - norm.eps)
    torch.testing.assert_close(twin(inputs), net(inputs))
    torch.testing.assert_close(path_norm(twin, inputs), path_norm(net, inputs), rtol=1e-9, atol=0)
    products = [log_spectral_product(weight_matrices(module, inputs)) for module in (net, twin)]
    torch.testing.assert_close(*products, rtol=1e-9, atol=0)

"""What torchmetrics promises of a metric, for each of ours."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_fisher.metrics import (
    FisherMetric,
    FrobeniusNormMetric,
    HessianFrobeniusMetric,
    HessianSpectralRadiusMetric,
    MeasureMetric,
    RobustnessMetric,
    SpectralRadiusMetric,
    local_minima_metrics,
)
from tests.functional.snapshot import changes, snapshot
from tests.metrics.subsets import network, same, subsets, updated

KINDS = {
    "fisher": FisherMetric,
    "frobenius": FrobeniusNormMetric,
    "spectral radius": SpectralRadiusMetric,
    "robustness": RobustnessMetric,
    "hessian frobenius": lambda: HessianFrobeniusMetric(num_probes=3),
    "hessian spectral radius": lambda: HessianSpectralRadiusMetric(tol=0.1),
    "measures": lambda: MeasureMetric(["fisher_rao_norm", "relative_flatness", "spectral_product"]),
    "collection": local_minima_metrics,
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
each_single = pytest.mark.parametrize("kind", list(KINDS.values())[:-1], ids=list(KINDS)[:-1])


@each_kind
def test_leaves_the_module_as_it_was(kind):
    net = network()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[1].eval()
    before = snapshot(net)
    updated(kind(), subsets(2), net).compute()
    assert changes(before, snapshot(net)) == []


@each_kind
def test_order_of_subsets_does_not_matter(kind):
    parts = subsets(4)
    same(updated(kind(), parts).compute(), updated(kind(), parts[::-1]).compute())


@each_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.clone()])
def test_copies_carry_the_states_and_go_their_own_way(kind, copied):
    parts = subsets(3)
    metric = updated(kind(), parts[:2])
    before = metric.compute()
    twin = updated(copied(metric), parts[2:])
    same(twin.compute(), updated(kind(), parts).compute())
    same(metric.compute(), before)


@each_kind
def test_reset_forgets(kind):
    parts = subsets(4)
    metric = updated(kind(), parts[:2])
    metric.compute()
    metric.reset()
    same(updated(metric, parts[2:]).compute(), updated(kind(), parts[2:]).compute())


@each_kind
def test_state_dict_is_empty_unless_persistent(kind):
    metric = updated(kind(), subsets(2))
    assert metric.state_dict() == {}
    metric.persistent(True)
    twin = kind()
    twin.persistent(True)
    twin.load_state_dict(metric.state_dict())
    parts = subsets(3)
    same(updated(twin, parts[2:]).compute(), updated(kind(), parts).compute())


@each_kind
def test_state_dict_survives_a_safe_load(kind, tmp_path):
    metric = updated(kind(), subsets(2))
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "states.pt")
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    twin = kind()
    twin.load_state_dict(states)
    with pytest.warns(UserWarning, match="before the ``update`` method"):  # torchmetrics does not save the count
        same(twin.compute(), metric.compute())


@each_kind
def test_forward_gives_the_subset_and_keeps_the_total(kind):
    parts, net, metric = subsets(3), network(), kind()
    for part in parts:
        same(metric(net, *part), updated(kind(), [part]).compute())
    same(metric.compute(), updated(kind(), parts).compute())


@each_single
def test_merge_state(kind):
    parts = subsets(4)
    first, second = updated(kind(), parts[:1]), updated(kind(), parts[1:])
    first.merge_state(second)
    same(first.compute(), updated(kind(), parts).compute())


@each_kind
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_in_validation_loops(kind, context):
    parts, net, metric = subsets(3), network(), kind()
    with context():
        updated(metric, [(x.clone(), y.clone()) for x, y in parts[:2]], net)
        metric.compute()
    updated(metric, parts[2:])
    copy.deepcopy(metric)
    same(metric.compute(), updated(kind(), parts).compute())


@each_kind
@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_stays_in_float64_inside_a_converted_module(kind, convert):
    """A trainer with ``precision="bf16-true"`` converts the module that holds the metric."""

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.metric = kind()

    holder = convert(Holder())
    parts = subsets(2)
    same(updated(holder.metric, parts).compute(), updated(kind(), parts).compute())


@each_kind
def test_keyword_arguments_and_a_single_update(kind):
    ((inputs, targets),) = subsets(1)
    metric = kind()
    metric.update(module=network(), inputs=inputs, targets=targets)
    same(metric.compute(), updated(kind(), [(inputs, targets)]).compute())


@each_kind
def test_no_subset_gives_nan(kind):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert all(value.isnan() for value in kind().compute().values())


@each_single
def test_lower_is_better_for_all(kind):
    metric = kind()
    assert (metric.higher_is_better, metric.is_differentiable, metric.full_state_update) == (False, False, False)

from __future__ import annotations

import copy
import pickle

import pytest
from torchmetrics import MetricCollection

from lightning_fisher.metrics import (
    FisherMetric,
    FrobeniusNormMetric,
    HessianFrobeniusMetric,
    HessianSpectralRadiusMetric,
    RobustnessMetric,
    SpectralRadiusMetric,
    local_minima_metrics,
    sharing,
)
from tests.metrics.subsets import same, subsets, updated


@pytest.fixture
def grams(monkeypatch):
    """A list that grows by one with every Gram matrix."""
    made, original = [], sharing.fisher_log_det

    def counted(*args, **kwargs):
        made.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(sharing, "fisher_log_det", counted)
    return made


@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.clone(prefix="x/")]
)
def test_each_gram_once(grams, copied):
    metrics = copied(local_minima_metrics())
    parts = subsets(3)
    for t, part in enumerate(parts, 1):
        updated(metrics, [part])
        assert len(grams) == t
        metrics.compute()
        dict(metrics.items())  # torchmetrics copies the states here
    metrics.reset()
    updated(metrics, parts)
    assert len(grams) == 6


def test_equals_the_metrics_on_their_own():
    parts = subsets(3)
    result = updated(local_minima_metrics(hessian=True, chunk_size=4), parts).compute()
    expected = {}
    for kind in (FisherMetric, FrobeniusNormMetric, SpectralRadiusMetric, RobustnessMetric):
        expected |= updated(kind(), parts).compute()
    for kind in (HessianFrobeniusMetric, HessianSpectralRadiusMetric):
        expected |= updated(kind(), parts).compute()
    same(result, {key: expected[key] for key in result}, rtol=1e-8)
    assert result.keys() == expected.keys()


def test_options_reach_all_that_they_concern(grams):
    metrics = local_minima_metrics(
        logit_norm=0.04, batch_norm="batch", chunk_size=4, rank_policy="error", hessian=True, prefix="a/", postfix="/b"
    )
    result = updated(metrics, subsets(1)).compute()
    assert all(key.startswith("a/") and key.endswith("/b") for key in result)
    (options,) = grams
    assert {name: options[name] for name in ("logit_norm", "batch_norm", "chunk_size", "rank_policy")} == {
        "logit_norm": 0.04,
        "batch_norm": "batch",
        "chunk_size": 4,
        "rank_policy": "error",
    }
    for name in ("RobustnessMetric", "HessianFrobeniusMetric", "HessianSpectralRadiusMetric"):
        assert metrics[f"a/{name}/b"].chunk_size == 4
    with pytest.raises(ValueError, match="Expected argument `logit_norm`"):
        local_minima_metrics(logit_norm=-1.0)


def test_a_collection_of_ones_own_shares_grams_after_the_first_update(grams):
    """torchmetrics finds the compute group by comparing states after one update of each."""
    metrics = MetricCollection([FisherMetric(), FrobeniusNormMetric(), SpectralRadiusMetric(), RobustnessMetric()])
    parts = subsets(3)
    updated(metrics, parts[:1])
    assert len(grams) == 3
    updated(metrics, parts[1:])
    assert len(grams) == 5
    same(metrics.compute(), updated(local_minima_metrics(), parts).compute())


def test_different_options_are_not_shared(grams):
    metrics = MetricCollection({"plain": FisherMetric(), "rescaled": FisherMetric(logit_norm=0.04)})
    parts = subsets(2)
    result = updated(metrics, parts).compute()
    assert len(grams) == 4
    assert result["plain_gamma"] == updated(FisherMetric(), parts).compute()["gamma"]
    assert result["rescaled_gamma"] == updated(FisherMetric(logit_norm=0.04), parts).compute()["gamma"]
    assert result["plain_gamma"] != result["rescaled_gamma"]

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_fisher.metrics import FisherMetric
from tests.metrics.subsets import N, network, subsets, updated
from tests.reference.gamma_forms import rows_at_equal_outputs, weight_sizes
from tests.reference.jacobian import gram, jacobian


def log_dets(parts, **options):
    """``ln|J Jᵀ|`` of each subset by single-sample backward passes."""
    rows = [jacobian(network(), *part, **options) for part in parts]
    return torch.stack([torch.linalg.slogdet(gram(j)).logabsdet for j in rows]), rows


@pytest.mark.parametrize("logit_norm", [None, 0.04])
def test_equals_naive_loops(logit_norm):
    parts = subsets(4)
    result = updated(FisherMetric(logit_norm=logit_norm), parts).compute()
    expected, rows = log_dets(parts, logit_norm=logit_norm)
    magnitude = torch.stack([2 * j.norm(dim=1).log().sum() for j in rows])
    parts = ["gamma_residual", "gamma_sensitivity", "gamma_magnitude", "gamma_direction"]
    assert list(result) == ["gamma", "gamma_std", *parts]
    assert all(value.dtype == torch.float64 for value in result.values())
    torch.testing.assert_close(result["gamma"], expected.mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(result["gamma_std"], expected.std(), rtol=1e-7, atol=0)
    torch.testing.assert_close(result["gamma_magnitude"], magnitude.mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(result["gamma_direction"], (expected - magnitude).mean(), rtol=1e-8, atol=0)
    residuals = [rows_at_equal_outputs(network(), *part, logit_norm=logit_norm)[1] for part in subsets(4)]
    residual = torch.stack([2 * r.log().sum() for r in residuals]).mean()
    torch.testing.assert_close(result["gamma_residual"], residual, rtol=1e-9, atol=0)
    torch.testing.assert_close(result["gamma_sensitivity"], magnitude.mean() - residual, rtol=1e-8, atol=0)


@pytest.mark.parametrize("scale", ["none", "layer", "filter", "element"])
def test_equal_outputs(scale):
    parts = subsets(3)
    result = updated(FisherMetric(logit_norm=0.04, residual=False, scale=scale), parts).compute()
    rows = [rows_at_equal_outputs(network(), *part, logit_norm=0.04)[0] for part in parts]
    rows = [row * weight_sizes(network(), scale) for row in rows]
    expected = torch.stack([torch.linalg.slogdet(gram(j)).logabsdet for j in rows])
    torch.testing.assert_close(result["gamma"], expected.mean(), rtol=1e-9, atol=0)
    assert float(result["gamma_residual"]) == 0.0


def test_options_reach_the_gram_matrix():
    parts = subsets(2)
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    smoothed = updated(FisherMetric(loss_fn=loss), parts).compute()["gamma"]
    expected, _ = log_dets(parts, loss_fn=nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none"))
    torch.testing.assert_close(smoothed, expected.mean(), rtol=1e-9, atol=0)
    plain = updated(FisherMetric(), parts).compute()["gamma"]
    in_chunks = updated(FisherMetric(chunk_size=3), parts).compute()["gamma"]
    torch.testing.assert_close(in_chunks, plain, rtol=1e-9, atol=0)
    coupled = updated(FisherMetric(batch_norm="batch", chunk_size=4), parts).compute()["gamma"]
    assert abs(coupled - plain) > 0.1


def test_spread_of_one_subset_is_unknown():
    result = updated(FisherMetric(), subsets(1)).compute()
    assert result["gamma"].isfinite()
    assert result["gamma_std"].isnan()


def test_without_a_subset_everything_is_nan():
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert all(value.isnan() for value in FisherMetric().compute().values())


def test_subsets_of_different_sizes_are_refused():
    metric = updated(FisherMetric(), subsets(1) + subsets(1, size=N + 2))
    with pytest.raises(ValueError, match=rf"same number of samples, .* but got sizes \[{N}, {N + 2}\]"):
        metric.compute()


def test_rank_policy():
    (inputs, targets), net = subsets(1)[0], network()
    twice = torch.cat([inputs[:4], inputs[:4]]), torch.cat([targets[:4], targets[:4]])
    with pytest.warns(UserWarning, match="rank 4"):
        assert updated(FisherMetric(), [twice], net).compute()["gamma"].isfinite()
    with pytest.raises(ValueError, match="rank 4"):
        FisherMetric(rank_policy="error").update(net, *twice)


def test_declared_properties():
    metric = FisherMetric()
    assert metric.higher_is_better is False
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    assert set(metric._reductions.values()) == {metric._reductions["log_det"]}
    assert metric._reductions["log_det"].__name__ == "dim_zero_cat"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_norm": 0.0}, "`logit_norm` to be a positive number or None, but got 0.0"),
        ({"logit_norm": math.inf}, "`logit_norm` to be a positive number or None, but got inf"),
        ({"batch_norm": "train"}, r"`batch_norm` to be one of \('eval', 'batch'\), but got 'train'"),
        ({"chunk_size": 1}, "`chunk_size` to be an integer of at least 2 or None, but got 1"),
        ({"scale": "unit"}, r"`scale` to be one of \('none', 'layer', 'filter', 'element'\), but got 'unit'"),
        ({"rank_policy": "skip"}, r"`rank_policy` to be one of \('error', 'pseudo'\), but got 'skip'"),
    ],
)
def test_bad_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        FisherMetric(**options)

from __future__ import annotations

import pytest
import torch

from lightning_fisher.metrics import RobustnessMetric
from tests.metrics.subsets import network, subsets, updated
from tests.reference.input_jacobian import robustness_by_sample


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"method": "power", "tol": 1e-7, "max_iter": 3000}])
def test_equals_dense_jacobians_over_all_samples(options):
    """The mean is over samples, so subsets may differ in size."""
    parts = subsets(2) + subsets(1, size=3)
    result = updated(RobustnessMetric(**options), parts).compute()
    values = [robustness_by_sample(network(), inputs, len(inputs)) for inputs, _ in parts]
    assert list(result) == ["robustness", "robustness_std"]
    torch.testing.assert_close(result["robustness"], torch.cat(values).mean(), rtol=1e-6, atol=0)
    means = torch.stack([value.mean() for value in values])
    torch.testing.assert_close(result["robustness_std"], means.std(), rtol=1e-6, atol=0)


def test_needs_no_targets():
    ((inputs, targets),) = subsets(1)
    metric, twin = RobustnessMetric(), RobustnessMetric()
    metric.update(network(), inputs)
    twin.update(network(), inputs, targets)
    assert metric.compute()["robustness"] == twin.compute()["robustness"]


@pytest.mark.parametrize("options", [{"method": "fast"}, {"tol": 0.0}, {"max_iter": 0}, {"chunk_size": 0}])
def test_bad_options_are_named_at_once(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be .*, but got {value!r}"):
        RobustnessMetric(**options)

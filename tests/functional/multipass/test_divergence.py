"""gradient_divergence against loops over sub-batches and pairs."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from lightning_fisher.functional import gradient_divergence
from tests.reference.cases import by_name
from tests.reference.divergence import norms_and_cosines
from tests.reference.penalty import sub_batch_gradients

NAMES = ["mlp", "batch_norm2d", "conv2d_deep", "unused_parameters"]


@pytest.mark.parametrize("num_sub_batches", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_against_loops(name, num_sub_batches):
    module, inputs, targets = by_name(name).build()
    norms, cosines = norms_and_cosines(module, inputs, targets, num_sub_batches)
    gradients, _ = sub_batch_gradients(module, inputs, targets, num_sub_batches)
    got = gradient_divergence(gradients)
    assert got.norm_variance.item() == pytest.approx(statistics.pvariance(norms), rel=1e-10)
    assert got.cosine.item() == pytest.approx(statistics.mean(cosines), rel=1e-10)
    assert got.norm_variance.dtype == got.cosine.dtype == torch.float64


def test_equal_gradients_do_not_diverge():
    gradient = [torch.randn(3, 4), torch.randn(5)]
    got = gradient_divergence([gradient, gradient, gradient])
    assert got.norm_variance.item() == pytest.approx(0.0, abs=1e-12)
    assert got.cosine.item() == pytest.approx(1.0, rel=1e-12)


def test_opposite_gradients():
    gradient = [torch.randn(7)]
    assert gradient_divergence([gradient, [-gradient[0]]]).cosine.item() == pytest.approx(-1.0, rel=1e-12)


def test_float32_sums_are_float64():
    """Tiny gradients whose squares underflow in float32."""
    gradients = [[torch.tensor([1e-30, 0.0])], [torch.tensor([3e-30, 4e-30])]]
    got = gradient_divergence(gradients)
    assert got.cosine.item() == pytest.approx(0.6, rel=1e-6)
    assert got.norm_variance.item() == pytest.approx(4e-60, rel=1e-6)


def test_generator_of_gradients():
    got = gradient_divergence([torch.eye(2)[i]] for i in range(2))
    assert got.cosine.item() == pytest.approx(0.0, abs=1e-12)


def test_one_gradient_has_no_pair():
    got = gradient_divergence([[torch.ones(2)]])
    assert got.norm_variance.item() == 0.0
    assert math.isnan(got.cosine.item())


def test_no_gradient_is_refused():
    with pytest.raises(ValueError, match="gradient"):
        gradient_divergence([])

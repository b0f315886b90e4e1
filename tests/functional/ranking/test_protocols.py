"""The ranking protocols equal those of the papers' authors and of third parties on a grid of 24 runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_fisher.functional.ranking import granulated_kendall, kendall_tau, robust_sign_error
from tests.reference.measures import value, values

MEASURES = ("good", "size", "wrong", "ties")
OPTIONS = {"lr": "hp.lr", "width": "hp.model_width", "depth": "hp.model_depth"}
each_measure = pytest.mark.parametrize("measure", MEASURES)


def grid(measure, repeats=1):
    """A measure, the gaps and the options of all runs; with ``repeats`` every setting has that many."""
    column = MEASURES.index(measure)
    prefix = "ranking" if repeats == 1 else "ranking/dz/rep10"
    x = torch.tensor(values()[f"{prefix}/measures"])[..., column].flatten()
    y = torch.tensor(values()[f"{prefix}/gap"]).flatten()
    return x, y, {name: values()[f"ranking/{name}"].tolist() * repeats for name in OPTIONS}


@each_measure
def test_kendall_tau(measure):
    x, y, _ = grid(measure)
    assert float(kendall_tau(x, y)) == pytest.approx(value(f"ranking/tau_b/complexity.{measure}"), abs=1e-12)


@each_measure
def test_granulated_kendall(measure):
    result = granulated_kendall(*grid(measure))
    key = f"ranking/psi_paper/complexity.{measure}"
    assert float(result.value) == pytest.approx(value(key), abs=1e-12)
    assert list(result.per_option) == list(OPTIONS)
    for name, psi in result.per_option.items():
        assert float(psi) == pytest.approx(value(f"{key}/{name}"), abs=1e-12)


@each_measure
@pytest.mark.parametrize(
    ("key", "repeats", "min_ess", "test_size"),
    [
        ("rep1_filter0_ess1", 1, 1, None),
        ("rep1_filter1_ess0.9", 1, 0.9, 10_000),
        ("rep10_filter0_ess1", 10, 1, None),
        ("rep10_filter1_ess4", 10, 4, 10_000),
    ],
)
def test_robust_sign_error(measure, key, repeats, min_ess, test_size):
    result = robust_sign_error(*grid(measure, repeats), min_ess=min_ess, test_size=test_size)
    parts = {"all": result.overall, **{OPTIONS[name]: part for name, part in result.per_option.items()}}
    assert len(parts) == 4
    for name, part in parts.items():
        prefix = f"ranking/dz/{key}/complexity.{measure}/{name}"
        np.testing.assert_allclose(part.errors, values()[f"{prefix}/losses_sorted"], atol=1e-12)
        np.testing.assert_allclose(part[:3], values()[f"{prefix}/mean_p90_max"], atol=1e-12)


def test_one_run_a_setting_and_the_papers_filter_leave_nothing():
    result = robust_sign_error(*grid("good"), min_ess=12, test_size=10_000)
    assert len(result.overall.errors) == 0
    assert all(part.isnan() for part in result.overall[:3])


def test_the_order_of_the_runs_does_not_matter():
    x, y, options = grid("ties", 10)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = {name: [options[name][i] for i in order] for name in options}
    expected = robust_sign_error(x, y, options, min_ess=1)
    result = robust_sign_error(x[order], y[order], shuffled, min_ess=1)
    torch.testing.assert_close(result.overall.errors, expected.overall.errors)
    psi = granulated_kendall(x[order], y[order], shuffled)
    torch.testing.assert_close(psi.value, granulated_kendall(x, y, options).value)


def test_repeats_of_a_setting_are_no_pairs_and_seeds_may_be_named():
    """Two seeds a width; the measure orders the widths right and the seeds wrong."""
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 4.0, 3.0])
    options = {"width": [8, 8, 16, 16]}
    assert float(granulated_kendall(x, y, options).value) == 1
    assert float(robust_sign_error(x, y, options, min_ess=1).overall.worst) == 0
    named = granulated_kendall(x, y, options | {"seed": [0, 1, 0, 1]})
    assert {name: float(psi) for name, psi in named.per_option.items()} == {"width": 1, "seed": -1}
    assert float(named.value) == 0


def test_an_option_that_never_varies_alone_is_nan_and_does_not_count():
    x = torch.arange(4.0)
    result = granulated_kendall(x, x, {"width": [8, 8, 16, 16], "lr": [0.1, 0.2, 0.1, 0.2], "depth": [2, 2, 2, 2]})
    assert result.per_option["depth"].isnan()
    assert float(result.value) == 1
    error = robust_sign_error(x, x, {"width": [8, 8, 16, 16], "depth": [2, 2, 2, 2]}, min_ess=0)
    assert error.per_option["depth"].worst.isnan()
    assert float(error.overall.worst) == 0


def test_an_undefined_value_is_not_hidden():
    x, y = torch.tensor([1.0, float("nan"), 3.0, 4.0]), torch.arange(4.0)
    options = {"width": [8, 8, 16, 16], "lr": [0.1, 0.2, 0.1, 0.2]}
    assert granulated_kendall(x, y, options).value.isnan()
    assert robust_sign_error(x, y, options, min_ess=0).overall.mean.isnan()


@pytest.mark.parametrize("protocol", [granulated_kendall, lambda *a: robust_sign_error(*a, min_ess=0)])
def test_bad_arguments_are_named(protocol):
    x = torch.arange(3.0)
    with pytest.raises(ValueError, match="Expected argument `options` to name at least one option, but got none"):
        protocol(x, x, {})
    with pytest.raises(ValueError, match=r"Expected argument `options\['lr'\]` to have one value a run, 3, but got 2"):
        protocol(x, x, {"lr": [1, 2]})
    with pytest.raises(ValueError, match="same shape"):
        protocol(x, torch.arange(4.0), {"lr": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"shape \[n\], but got \(1, 3\)"):
        protocol(x[None], x[None], {"lr": [1, 2, 3]})


@pytest.mark.parametrize(
    ("name", "options"), [("min_ess", {"min_ess": -1}), ("test_size", {"min_ess": 1, "test_size": 0})]
)
def test_bad_filters_are_named(name, options):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be"):
        robust_sign_error(torch.arange(2.0), torch.arange(2.0), {"lr": [1, 2]}, **options)

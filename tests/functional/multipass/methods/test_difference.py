"""The choice of the finite difference: the paper's bit for bit, Geiping's arrays, copies of the module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_fisher.functional import (
    difference_penalty_gradient,
    penalty_gradient,
    sharpness_aware_gradient,
)
from tests.functional.compare import gradient_error
from tests.functional.snapshot import changes, snapshot
from tests.reference.cases import CASES, by_name
from tests.reference.hessian import hessian_penalty_gradient
from tests.reference.methods import train
from tests.reference.perturbed import difference

FORMS = [(d, s) for d in ("backward", "forward", "central") for s in ("fixed", "normalized")]
each_form = pytest.mark.parametrize(("form", "step"), FORMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["mlp_dropout", "conv2d_deep", "batch_norm2d", "unused_parameters", "frozen_body"])
def test_the_default_is_the_papers_bit_for_bit(name, dtype):
    module, inputs, targets = by_name(name).build(dtype)
    module.train()
    expected = penalty_gradient(module, inputs, targets, num_sub_batches=2)
    before = snapshot(module)
    got = difference_penalty_gradient(module, inputs, targets, num_sub_batches=2)
    assert changes(before, snapshot(module)) == []
    assert torch.equal(got[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1], expected[1], strict=True))


@pytest.mark.parametrize("form", ["forward", "central"])
@pytest.mark.parametrize(("net", "strength"), [("mlp", 0.5), ("mlp", 5.0), ("conv", 0.5)])
def test_geipings_regularizer_is_a_special_case(net, form, strength):
    """``β = η s/(4α)`` with η the learning rate: weights after six steps of the authors' code."""
    learning_rate, epsilon = 0.1, 0.01

    def gradient(module, x, y, t):
        beta = learning_rate * strength / (4 * epsilon)
        _, penalty = difference_penalty_gradient(
            copy.deepcopy(module), x, y, alpha=epsilon, num_sub_batches=4, difference=form, step="normalized"
        )
        # The mean of the gradients of the sub-batches, which batch-norm normalizes one by one.
        plain = sharpness_aware_gradient(module, x, y, rho=0, num_sub_batches=4)
        return plain.loss, [g + beta * r for g, r in zip(plain.gradient, penalty, strict=True)]

    run = f"gradreg/{net}/{form}" + ("" if strength == 0.5 else "_strength5")
    assert train(run, net, gradient)[0] < 1e-10


FEW = [by_name(name) for name in ("mlp", "conv2d_deep", "batch_norm2d", "unused_parameters")]


@pytest.mark.parametrize(
    ("case", "form", "step"),
    [
        (case, form, step)
        for form, step in FORMS
        for case in (CASES if (form, step) == ("central", "normalized") else FEW)
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_against_copies(case, form, step):
    module, inputs, targets = case.build()
    module.eval()
    options = {
        "alpha": 1e-2,
        "num_sub_batches": min(2, len(targets)),
        "difference": form,
        "step": step,
        "loss_fn": case.loss_fn,
    }
    value, gradient = difference(module, inputs, targets, **options)
    got_value, got = difference_penalty_gradient(module, inputs, targets, **options)
    assert got_value.item() == pytest.approx(value, rel=1e-8, abs=1e-13)
    assert gradient_error(got, gradient) < 1e-8


@pytest.mark.parametrize("parts", [1, 3, 5])
@each_form
def test_dropout_masks_and_unequal_parts(form, step, parts):
    module, inputs, targets = by_name("mlp_dropout").build()
    module.train()
    options = {"alpha": 1e-2, "num_sub_batches": parts, "difference": form, "step": step}
    torch.manual_seed(3)
    value, gradient = difference(module, inputs, targets, **options)
    got_value, got = difference_penalty_gradient(module, inputs, targets, **options)
    assert got_value.item() == pytest.approx(value, rel=1e-8)
    assert gradient_error(got, gradient) < 1e-8


@each_form
def test_tends_to_alpha_times_the_hessian_vector_product(form, step):
    """On a smooth network, with any form: of first order in the step, the central difference of second."""
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    inputs, targets = torch.randn(8, 6).double(), torch.randint(3, (8,))
    errors = []
    for alpha in (1e-2, 1e-3):
        expected = hessian_penalty_gradient(module, inputs, targets, alpha=alpha, num_sub_batches=4)
        got = difference_penalty_gradient(
            module, inputs, targets, alpha=alpha, num_sub_batches=4, difference=form, step=step
        )[1]
        errors.append(gradient_error(got, expected))
    assert errors[1] < 2e-2
    assert errors[0] / errors[1] == pytest.approx(100 if form == "central" else 10, rel=0.3)


@each_form
def test_a_zero_gradient_gives_zero(form, step):
    module = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(module.weight)
    inputs, targets = torch.ones(2, 3).double(), torch.tensor([0, 1])
    value, gradient = difference_penalty_gradient(
        module, inputs, targets, num_sub_batches=1, difference=form, step=step
    )
    assert value.item() == 0.0
    assert gradient[0].count_nonzero() == 0


@each_form
def test_what_is_not_finite_is_left_out(form, step):
    class Cliff(nn.Module):
        def __init__(self):
            super().__init__()
            self.u = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            return x * (1 + self.u + torch.where(self.u == 0, 0.0, torch.inf))

    module = nn.Sequential(nn.Linear(3, 2).double(), Cliff())
    value, gradient = difference_penalty_gradient(
        module, torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), num_sub_batches=2, difference=form, step=step
    )
    assert value.isnan()
    assert all(g.count_nonzero() == 0 for g in gradient)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"difference": "sideways"}, "difference.*sideways"),
        ({"step": "long"}, "step.*long"),
        ({"alpha": 0.0}, "alpha.*0"),
        ({"num_sub_batches": 6}, "num_sub_batches.*6"),
    ],
)
def test_bad_options_are_named(options, text):
    module, inputs, targets = by_name("mlp").build()
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        difference_penalty_gradient(module, inputs, targets, **{"num_sub_batches": 2, **options})

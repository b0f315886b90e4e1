"""penalty_gradient against Algorithm 1 in plain loops on copies of the module."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fisher.functional import penalty_gradient
from tests.functional.compare import cosine, gradient_error, relative_error
from tests.functional.snapshot import changes, global_state
from tests.reference.cases import BATCH_NORM_CASES, BATCH_STATISTICS, CASES, RIGHT_OR_REFUSED, by_name, each
from tests.reference.cases_refused import DENOMINATORS
from tests.reference.hessian import hessian_penalty_gradient
from tests.reference.modules import Lambda
from tests.reference.penalty import penalty, sub_batch_gradients

DROPOUT = ["mlp_dropout", "batch_norm1d_dropout", "self_attention_dropout", "gru_bidirectional", "checkpointed"]


def options_for(case, targets, alpha=1e-3):
    return {"alpha": alpha, "num_sub_batches": min(2, len(targets)), "loss_fn": case.loss_fn}


@each(CASES)
@pytest.mark.parametrize("alpha", [1e-2, 1e-4])
def test_float64_in_evaluation_mode(case, alpha):
    module, inputs, targets = case.build()
    module.eval()
    options = options_for(case, targets, alpha)
    value, gradient = penalty(module, inputs, targets, **options)
    got_value, got = penalty_gradient(module, inputs, targets, **options)
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert [g.shape for g in got] == [p.shape for p in module.parameters()]
    assert all(g.dtype == torch.float64 and not g.requires_grad for g in got)
    assert gradient_error(got, gradient) < 1e-9


@each([*BATCH_NORM_CASES, BATCH_STATISTICS, by_name("instance_norm_tracked"), by_name("spectral_norm")])
def test_float64_with_batch_statistics(case):
    module, inputs, targets = case.build()
    module.train()
    for submodule in module.modules():
        if isinstance(submodule, nn.Dropout):
            submodule.eval()
    options = options_for(case, targets)
    value, gradient = penalty(module, inputs, targets, **options)
    got_value, got = penalty_gradient(module, inputs, targets, **options)
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


@each(RIGHT_OR_REFUSED)
def test_right_or_refused(case):
    module, inputs, targets = case.build()
    options = options_for(case, targets)
    value, gradient = penalty(module, inputs, targets, denominator=DENOMINATORS.get(case.name), **options)
    try:
        got_value, got = penalty_gradient(module, inputs, targets, **options)
    except (ValueError, NotImplementedError):
        return
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


@pytest.mark.parametrize("num_sub_batches", [1, 2, 4])
@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_masks_are_shared_by_the_two_passes(name, num_sub_batches):
    module, inputs, targets = by_name(name).build()
    module.train()
    if "batch_norm" in name and num_sub_batches == 4:
        num_sub_batches = 2  # at least two samples a sub-batch
    options = {"alpha": 1e-3, "num_sub_batches": num_sub_batches}
    torch.manual_seed(3)
    value, gradient = penalty(module, inputs, targets, **options)
    got_value, got = penalty_gradient(module, inputs, targets, **options)
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_other_generators_give_both_passes_the_same_draws(draw):
    """Stochastic depth is often drawn from Python's or numpy's generator."""
    body = by_name("mlp").build()[0]
    module = Lambda(lambda self, x: self.body(x) * (1 + draw()), body=body)
    inputs, targets = by_name("mlp").build()[1:]
    before = global_state()
    values = [
        penalty_gradient(module, inputs, targets, alpha=alpha, num_sub_batches=2)[0] / alpha for alpha in (1e-4, 1e-6)
    ]
    assert changes(before, global_state()) == []
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-2)


def test_penalty_with_dropout_vanishes_with_alpha():
    """With other masks in the second pass R would not be of the order of alpha."""
    module, inputs, targets = by_name("mlp_dropout").build()
    values = [
        penalty_gradient(module, inputs, targets, alpha=alpha, num_sub_batches=2)[0] / alpha for alpha in (1e-4, 1e-6)
    ]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-3)


@pytest.mark.parametrize("num_sub_batches", [1, 2, 3, 4, 5])
def test_unequal_parts_are_weighted_by_their_size(num_sub_batches):
    module, inputs, targets = by_name("conv2d_deep").build()
    options = {"alpha": 1e-3, "num_sub_batches": num_sub_batches}
    value, gradient = penalty(module, inputs, targets, **options)
    got_value, got = penalty_gradient(module, inputs, targets, **options)
    assert got_value.item() == pytest.approx(value, rel=1e-9)
    assert gradient_error(got, gradient) < 1e-9


def test_defaults_are_the_papers():
    module = by_name("mlp").build()[0]
    inputs, targets = torch.randn(16, 6).double(), torch.randint(3, (16,))
    expected = penalty_gradient(module, inputs, targets, alpha=1e-4, num_sub_batches=8)
    got = penalty_gradient(module, inputs, targets)
    assert got[0].item() == expected[0].item()
    assert gradient_error(got[1], expected[1]) == 0


def test_frozen_and_unused_parameters_get_zeros():
    for name, zeros in {"frozen_body": ["0.weight", "0.bias"], "unused_parameters": ["never", "unused.bias"]}.items():
        module, inputs, targets = by_name(name).build()
        _, got = penalty_gradient(module, inputs, targets, num_sub_batches=2)
        by_parameter = dict(zip(dict(module.named_parameters()), got, strict=True))
        assert all(by_parameter[zero].count_nonzero() == 0 for zero in zeros)
        assert any(gradient.count_nonzero() for gradient in got)


def test_is_alpha_times_the_hessian_vector_product_on_a_smooth_net():
    """The difference is of second order: it shrinks in proportion to alpha."""
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3))
    module, inputs, targets = module.double(), torch.randn(8, 2, 6, 6).double(), torch.randint(3, (8,))
    errors = []
    for alpha in (1e-3, 1e-4, 1e-5):
        expected = hessian_penalty_gradient(module, inputs, targets, alpha=alpha, num_sub_batches=4)
        got = penalty_gradient(module, inputs, targets, alpha=alpha, num_sub_batches=4)[1]
        errors.append(gradient_error(got, expected))
    assert errors[1] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


def test_value_is_alpha_times_the_mean_squared_gradient_norm():
    module, inputs, targets = by_name("mlp").build()
    gradients, sizes = sub_batch_gradients(module, inputs, targets, 2)
    squares = [sum(g.pow(2).sum().item() for g in gradient) for gradient in gradients]
    expected = 1e-7 * sum(size * square for size, square in zip(sizes, squares, strict=True)) / len(targets)
    value, _ = penalty_gradient(module, inputs, targets, alpha=1e-7, num_sub_batches=2)
    assert value.item() == pytest.approx(expected, rel=1e-4)


@each(CASES)
def test_float32_against_float64_at_the_same_alpha(case):
    module, inputs, targets = case.build(torch.float32)
    module.eval()
    options = options_for(case, targets, alpha=1e-3)
    value, gradient = penalty(module, inputs, targets, **options)
    got_value, got = penalty_gradient(module, inputs, targets, **options)
    assert all(g.dtype == p.dtype for g, p in zip(got, module.parameters(), strict=True))
    assert got_value.item() == pytest.approx(value, rel=1e-2)
    assert cosine(got, gradient) > 0.999


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": 0.0}, "alpha.*0"),
        ({"alpha": -1e-4}, "alpha.*-0.0001"),
        ({"alpha": float("nan")}, "alpha.*nan"),
        ({"num_sub_batches": 0}, "num_sub_batches.*0"),
        ({"num_sub_batches": 6}, "num_sub_batches.*6"),
    ],
)
def test_bad_options_are_named(options, text):
    module, inputs, targets = by_name("mlp").build()
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        penalty_gradient(module, inputs, targets, **{"num_sub_batches": 2, **options})


def test_gradients_are_new_tensors():
    module, inputs, targets = by_name("mlp").build()
    first = penalty_gradient(module, inputs, targets, num_sub_batches=2)[1]
    copies = [g.clone() for g in first]
    penalty_gradient(module, inputs + 1, targets, num_sub_batches=2)
    assert all(relative_error(g, c) == 0 for g, c in zip(first, copies, strict=True))

"""SAM, ASAM, m-SAM against the public codes' arrays and against loops over copies of the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import sharpness_aware_gradient
from tests.functional.compare import gradient_error
from tests.reference.cases import CASES, by_name, each
from tests.reference.methods import buffers_error, train
from tests.reference.penalty import loss_and_gradient
from tests.reference.perturbed import sharpness_aware

RUNS = {
    "sam": {},
    "asam": {"rho": 2.0, "adaptive": True},
    "asam_authors": {"rho": 0.5, "adaptive": "weights", "eta": 0.01},
}


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("run", RUNS)
def test_public_code(run, net):
    def gradient(module, x, y, t):
        result = sharpness_aware_gradient(module, x, y, **RUNS[run])
        return result.loss, result.gradient

    weights, losses, module = train(f"{run}/{net}", net, gradient)
    assert weights < 1e-10
    assert losses < 1e-10
    if net == "conv" and run != "asam_authors":  # that one updates the statistics in both passes
        assert buffers_error(module, f"{run}/{net}", 5) < 1e-10


@each(CASES)
@pytest.mark.parametrize("options", [{"rho": 0.1}, {"rho": 0.5, "adaptive": True, "eta": 0.1}], ids=["sam", "asam"])
def test_against_copies(case, options):
    module, inputs, targets = case.build()
    module.eval()
    loss, penalty, gradient = sharpness_aware(module, inputs, targets, loss_fn=case.loss_fn, **options)
    result = sharpness_aware_gradient(module, inputs, targets, loss_fn=case.loss_fn, **options)
    assert result.loss.item() == pytest.approx(loss, rel=1e-10)
    assert result.penalty.item() == pytest.approx(penalty, rel=1e-8, abs=1e-13)
    assert gradient_error(result.gradient, gradient) < 1e-9
    assert [g.shape for g in result.gradient] == [p.shape for p in module.parameters()]


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"adaptive": "weights", "eta": 0.01}], ids=["sam", "asam"])
def test_sub_batches_have_perturbations_of_their_own(parts, options):
    module, inputs, targets = by_name("conv2d_deep").build()
    loss, penalty, gradient = sharpness_aware(module, inputs, targets, rho=0.2, parts=parts, **options)
    result = sharpness_aware_gradient(module, inputs, targets, rho=0.2, num_sub_batches=parts, **options)
    assert result.loss.item() == pytest.approx(loss, rel=1e-10)
    assert result.penalty.item() == pytest.approx(penalty, rel=1e-8)
    assert gradient_error(result.gradient, gradient) < 1e-9


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["mlp_dropout", "batch_norm1d_dropout"])
def test_both_passes_have_the_same_dropout_masks_and_batch_statistics(name, parts):
    module, inputs, targets = by_name(name).build()
    module.train()
    torch.manual_seed(3)
    _, penalty, gradient = sharpness_aware(module, inputs, targets, rho=0.1, parts=parts)
    result = sharpness_aware_gradient(module, inputs, targets, rho=0.1, num_sub_batches=parts)
    assert result.penalty.item() == pytest.approx(penalty, rel=1e-8)
    assert gradient_error(result.gradient, gradient) < 1e-9


def test_a_zero_gradient_is_not_perturbed():
    module = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(module.weight)
    inputs, targets = torch.ones(2, 3).double(), torch.tensor([0, 1])
    result = sharpness_aware_gradient(module, inputs, targets, rho=1.0)
    assert result.penalty.item() == 0.0
    assert all(g.count_nonzero() == 0 for g in result.gradient)


def test_zero_weights_are_not_perturbed_by_asam():
    module = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(module.weight)
    inputs, targets = torch.ones(2, 3).double(), torch.tensor([0, 0])
    result = sharpness_aware_gradient(module, inputs, targets, rho=1.0, adaptive=True)
    assert result.penalty.item() == 0.0
    assert gradient_error(result.gradient, loss_and_gradient(module, inputs, targets)[1]) < 1e-12


def distance_moved(module, inputs, targets, rho):
    points = []
    module.register_forward_pre_hook(lambda *_: points.append([p.detach().clone() for p in module.parameters()]))
    sharpness_aware_gradient(module, inputs, targets, rho=rho)
    return torch.cat([(b - a).flatten() for a, b in zip(*points, strict=True)]).norm().item()


def test_the_radius_is_that_of_all_parameters_together():
    assert distance_moved(*by_name("mlp").build(), 0.3) == pytest.approx(0.3, rel=1e-12)


def test_squares_of_tiny_gradients_do_not_underflow():
    """In float32, with gradients of 1e-25 whose squares are zero."""
    module = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(module.weight)
    assert distance_moved(module, 1e-25 * torch.randn(4, 3), torch.tensor([0, 0, 1, 0]), 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rho": -0.1}, "rho.*-0.1"),
        ({"rho": float("nan")}, "rho.*nan"),
        ({"rho": True}, "rho.*True"),
        ({"adaptive": "biases"}, "adaptive.*biases"),
        ({"adaptive": 1}, "adaptive.*1"),
        ({"adaptive": True, "eta": -1.0}, "eta.*-1.0"),
        ({"eta": 0.1}, "eta.*0.1"),
        ({"num_sub_batches": 0}, "num_sub_batches.*0"),
        ({"num_sub_batches": 6}, "num_sub_batches.*6"),
    ],
)
def test_bad_options_are_named(options, text):
    module, inputs, targets = by_name("mlp").build()
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        sharpness_aware_gradient(module, inputs, targets, **options)

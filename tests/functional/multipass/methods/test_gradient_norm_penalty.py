"""The gradient-norm penalty against the authors' arrays, copies of the module and double backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import gradient_norm_penalty_gradient, sharpness_aware_gradient
from tests.functional.compare import gradient_error
from tests.reference.cases import CASES, by_name, each
from tests.reference.methods import array, batches, buffers_error, network, train
from tests.reference.perturbed import gradient_norm


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_public_code(net):
    def gradient(module, x, y, t):
        result = gradient_norm_penalty_gradient(module, x, y)
        return result.loss, result.gradient

    weights, losses, module = train(f"gnp/{net}/paper", net, gradient)
    assert weights < 1e-10
    assert losses < 1e-10
    if net == "conv":
        assert buffers_error(module, "gnp/conv/paper", 5) < 1e-10


@each(CASES)
def test_against_copies(case):
    module, inputs, targets = case.build()
    module.eval()
    options = {"radius": 0.2, "coefficient": 0.7, "loss_fn": case.loss_fn}
    loss, penalty, gradient = gradient_norm(module, inputs, targets, **options)
    result = gradient_norm_penalty_gradient(module, inputs, targets, **options)
    assert result.loss.item() == pytest.approx(loss, rel=1e-10)
    assert result.penalty.item() == pytest.approx(penalty, rel=1e-8, abs=1e-13)
    assert gradient_error(result.gradient, gradient) < 1e-9


@pytest.mark.parametrize("parts", [2, 3])
def test_sub_batches(parts):
    module, inputs, targets = by_name("mlp_dropout").build()
    module.train()
    torch.manual_seed(3)
    _, penalty, gradient = gradient_norm(module, inputs, targets, radius=0.2, coefficient=0.7, parts=parts)
    result = gradient_norm_penalty_gradient(module, inputs, targets, 0.2, 0.7, num_sub_batches=parts)
    assert result.penalty.item() == pytest.approx(penalty, rel=1e-8)
    assert gradient_error(result.gradient, gradient) < 1e-9


def exact(module, x, y, weight):
    """Gradient of ``L + λ‖∇L‖`` by double backward."""
    parameters = list(module.parameters())
    loss = cross_entropy(module(x), y)
    g = torch.autograd.grad(loss, parameters, create_graph=True)
    return torch.autograd.grad(loss + weight * torch.cat([part.flatten() for part in g]).norm(), parameters)


def test_tends_to_the_gradient_of_the_penalized_loss():
    """λ = a r held, the error shrinks in proportion to r; the limit is also an array of its own."""
    module, (x, y) = network(), batches()[0]
    expected = exact(module, x, y, 0.08)
    names = [name for name, _ in module.named_parameters()]
    assert gradient_error(expected, [array(f"gnp/mlp/exact_penalty/grad_step1/{name}") for name in names]) < 1e-12
    errors = [
        gradient_error(
            [
                plain + (0.08 / r) * (got - plain)
                for plain, got in zip(
                    gradient_norm_penalty_gradient(module, x, y, coefficient=0).gradient,
                    gradient_norm_penalty_gradient(module, x, y, radius=r, coefficient=1.0).gradient,
                    strict=True,
                )
            ],
            expected,
        )
        for r in (1e-2, 1e-3)
    ]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def test_the_penalty_is_about_the_norm():
    module, (x, y) = network(), batches()[0]
    norm = torch.cat([g.flatten() for g in gradient_norm_penalty_gradient(module, x, y, coefficient=0).gradient]).norm()
    result = gradient_norm_penalty_gradient(module, x, y, radius=1e-5, coefficient=0.5)
    assert result.penalty.item() == pytest.approx(0.5e-5 * norm.item(), rel=1e-4)


def test_coefficient_one_is_sam():
    module, inputs, targets = by_name("conv2d_deep").build()
    ours = gradient_norm_penalty_gradient(module, inputs, targets, radius=0.05, coefficient=1.0)
    sam = sharpness_aware_gradient(module, inputs, targets, rho=0.05)
    assert gradient_error(ours.gradient, sam.gradient) < 1e-14


def test_a_zero_gradient_is_not_perturbed():
    module = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(module.weight)
    result = gradient_norm_penalty_gradient(module, torch.ones(2, 3).double(), torch.tensor([0, 1]))
    assert result.penalty.item() == 0.0
    assert all(g.count_nonzero() == 0 for g in result.gradient)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"radius": 0.0}, "radius.*0.0"),
        ({"radius": float("inf")}, "radius.*inf"),
        ({"coefficient": 1.1}, "coefficient.*1.1"),
        ({"coefficient": -0.1}, "coefficient.*-0.1"),
        ({"coefficient": float("nan")}, "coefficient.*nan"),
        ({"num_sub_batches": True}, "num_sub_batches.*True"),
    ],
)
def test_bad_options_are_named(options, text):
    module, inputs, targets = by_name("mlp").build()
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        gradient_norm_penalty_gradient(module, inputs, targets, **options)

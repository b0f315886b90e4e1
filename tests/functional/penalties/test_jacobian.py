"""jacobian_penalty against the authors' arrays and against the Jacobian of one sample after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_fisher.functional import jacobian_penalty
from tests.functional.compare import relative_error
from tests.reference.methods import ARRAYS, array, batches, network, train


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("kind", ["exact", "proj1"])
def test_public_code(kind, net):
    run = f"jacreg/{net}/{kind}"
    values = []

    def gradient(module, x, y, t):
        x = x.clone().requires_grad_()
        logits = module(x)
        chosen = {"projections": None} if kind == "exact" else {"directions": array(f"{run}/projection")[t : t + 1]}
        values.append(jacobian_penalty(logits, x, **chosen))
        loss = cross_entropy(logits, y) + 0.01 * values[-1]
        return loss, torch.autograd.grad(loss, list(module.parameters()))

    weights, losses, _ = train(run, net, gradient)
    assert weights < 1e-10
    assert losses < 1e-10
    (key,) = [key for key in ARRAYS.files if key.startswith(f"{run}/regular")]
    assert relative_error(torch.stack(values).detach(), array(key)) < 1e-10


def squared_jacobians(module, x):
    """``‖J_i‖_F²`` of every sample, one class after the other."""
    found = []
    for sample in x:
        sample = sample.clone().unsqueeze(0).requires_grad_()
        z = module(sample)[0]
        found.append(sum(torch.autograd.grad(z_k, sample, retain_graph=True)[0].square().sum() for z_k in z))
    return torch.stack(found)


def test_exact_is_the_mean_over_samples_of_their_own_jacobians():
    module, (x, _) = network("relu_mlp"), batches()[0]
    expected = squared_jacobians(module, x).mean() / 2
    x.requires_grad_()
    got = jacobian_penalty(module(x), x, None)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


def test_projections_are_unbiased():
    module, (x, _) = network(), batches()[0]
    x.requires_grad_()
    z = module(x)
    exact = jacobian_penalty(z, x, None)
    draws = torch.stack([jacobian_penalty(z, x) for _ in range(400)]).detach()
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - exact) < 4 * error
    assert error < 0.02 * exact
    many = torch.stack([jacobian_penalty(z, x, 16) for _ in range(50)]).detach()
    assert many.std().item() == pytest.approx(draws.std().item() / 4, rel=0.4)


def test_generator_leaves_the_global_random_state():
    x = torch.randn(4, 3).requires_grad_()
    z = nn.Linear(3, 2)(x)
    state = torch.get_rng_state()
    values = [jacobian_penalty(z, x, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert values[0] == values[1] != values[2]


def test_several_inputs_are_one_vector():
    a, b = torch.randn(4, 3).double().requires_grad_(), torch.randn(4, 2).double().requires_grad_()
    net = nn.Bilinear(3, 2, 4).double()
    together = jacobian_penalty(net(a, b), [a, b], None)
    apart = jacobian_penalty(net(a, b), a, None) + jacobian_penalty(net(a, b), [b], None)
    assert together.item() == pytest.approx(apart.item(), rel=1e-12)


def test_images_and_maps():
    module = nn.Conv2d(2, 3, 3).double()
    x = torch.randn(2, 2, 4, 4).double().requires_grad_()
    got = jacobian_penalty(module(x), x, None)
    expected = squared_jacobians(nn.Sequential(module, nn.Flatten()), x.detach()).mean() / 2
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


def test_outputs_that_do_not_depend_on_the_inputs_give_zero():
    x = torch.randn(4, 3).requires_grad_()
    bias = nn.Parameter(torch.zeros(2))
    assert jacobian_penalty(bias.expand(4, 2), x).item() == 0.0


def test_one_output():
    x = torch.randn(4, 3).double().requires_grad_()
    net = nn.Linear(3, 1).double()
    expected = net.weight.square().sum().item() / 2
    assert jacobian_penalty(net(x), x).item() == pytest.approx(expected, rel=1e-12)


def test_mistakes_are_named():
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(ValueError, match="`inputs` to require gradients"):
        jacobian_penalty(net(x), x)
    with pytest.raises(ValueError, match="`inputs` to require gradients"):
        jacobian_penalty(net(x), [])
    x.requires_grad_()
    with torch.no_grad():
        z = net(x)
    with pytest.raises(ValueError, match="`outputs` to be computed with gradients on"):
        jacobian_penalty(z, x)
    with pytest.raises(ValueError, match=r"`projections`.*0"):
        jacobian_penalty(net(x), x, 0)
    with pytest.raises(ValueError, match=r"`outputs` to have shape \[N, K\], but got \(4,\)"):
        jacobian_penalty(net(x)[:, 0], x)
    with pytest.raises(ValueError, match=r"`directions`.*\[n, 4, 2\].*\(1, 4, 3\)"):
        jacobian_penalty(net(x), x, directions=torch.zeros(1, 4, 3))

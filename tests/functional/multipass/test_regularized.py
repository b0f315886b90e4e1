"""regularized_gradient in each of its forms against plain float64 loops."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_fisher.functional import regularized_gradient
from lightning_fisher.functional.multipass.sub_batches import draw_perturbed, merge_unperturbed
from tests.functional.compare import gradient_error
from tests.reference.penalty import penalty
from tests.reference.regularized_forms import step_gradient


def network(batch_norm=True, dropout=True):
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Dropout(0.3) if dropout else nn.Identity(), nn.Linear(4 * 36, 3)).double()


def batch(count=16):
    return torch.randn(count, 1, 6, 6).double(), torch.randint(3, (count,))


def drawn(count, perturbed, seed):
    return draw_perturbed(count, perturbed, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [16, 18])
@pytest.mark.parametrize("scaling", ["linear", "sqrt"])
@pytest.mark.parametrize("perturbed", [None, 1, 2, 4])
@pytest.mark.parametrize("gradient", ["full", "shared"])
def test_equals_the_oracle(gradient, perturbed, scaling, count):
    """With batch-norm, dropout and unequal parts; buffers and random state end where a training pass leaves them."""
    net, (x, y) = network().train(), batch(count)
    reference = copy.deepcopy(net)
    flags = drawn(4, perturbed, 5)
    torch.manual_seed(3)
    loss, value, expected = step_gradient(
        reference, x, y, beta=7.0, alpha=1e-3, num_sub_batches=4, gradient=gradient, flags=flags, scaling=scaling
    )
    draws = torch.rand(3)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5)
    options = {"beta": 7.0, "alpha": 1e-3, "num_sub_batches": 4, "perturbed": perturbed, "generator": generator}
    got = regularized_gradient(net, x, y, gradient=gradient, scaling=scaling, **options)
    assert gradient_error(got.gradient, expected) < 1e-10
    assert got.penalty.item() == pytest.approx(value, rel=1e-9)
    assert got.loss.item() == pytest.approx(loss, rel=1e-12)
    assert torch.equal(torch.rand(3), draws)
    for (name, buffer), other in zip(net.named_buffers(), reference.buffers(), strict=True):
        assert torch.allclose(buffer.double(), other.double(), rtol=1e-12), name
    assert all(p.grad is None for p in net.parameters())


def test_full_is_the_loss_plus_beta_times_the_penalty():
    net, (x, y) = network(dropout=False).train(), batch()
    _, penalty_grads = penalty(net, x, y, alpha=1e-3, num_sub_batches=4, loss_fn=F.cross_entropy)
    reference = copy.deepcopy(net)
    plain = torch.autograd.grad(F.cross_entropy(reference(x), y), list(reference.parameters()))
    got = regularized_gradient(net, x, y, beta=3.0, alpha=1e-3, num_sub_batches=4)
    assert gradient_error(got.gradient, [g + 3.0 * r for g, r in zip(plain, penalty_grads, strict=True)]) < 1e-10


def test_shared_equals_full_where_samples_do_not_interact():
    net, (x, y) = network(batch_norm=False, dropout=False), batch()
    options = {"beta": 20.0, "alpha": 1e-3, "num_sub_batches": 4}
    full = regularized_gradient(net, x, y, gradient="full", **options)
    shared = regularized_gradient(net, x, y, gradient="shared", **options)
    assert gradient_error(shared.gradient, full.gradient) < 1e-12
    assert shared.loss.item() == pytest.approx(full.loss.item(), rel=1e-12)


@pytest.mark.parametrize("gradient", ["full", "shared"])
def test_perturbed_is_unbiased(gradient):
    """The mean over all choices of k of M sub-batches is the gradient with all of them."""
    net, (x, y) = network(batch_norm=False, dropout=False), batch()
    options = {"beta": 20.0, "alpha": 1e-3, "num_sub_batches": 4, "gradient": gradient}
    expected = regularized_gradient(net, x, y, **options)
    found = {}
    for seed in range(200):
        choice = tuple(drawn(4, 2, seed))
        if choice not in found:
            generator = torch.Generator().manual_seed(seed)
            found[choice] = regularized_gradient(net, x, y, perturbed=2, generator=generator, **options)
    assert len(found) == len(list(itertools.combinations(range(4), 2)))
    mean = [torch.stack(parts).mean(0) for parts in zip(*(f.gradient for f in found.values()), strict=True)]
    assert gradient_error(mean, expected.gradient) < 1e-10
    assert sum(f.penalty.item() for f in found.values()) / len(found) == pytest.approx(
        expected.penalty.item(), rel=1e-9
    )
    assert max(gradient_error(f.gradient, expected.gradient) for f in found.values()) > 1e-3


def test_every_sub_batch_is_drawn_equally_often():
    counts = torch.tensor([drawn(8, 1, seed) for seed in range(4000)]).sum(0)
    assert (counts.double() / 4000 - 1 / 8).abs().max() < 0.03
    assert all(sum(drawn(8, 3, seed)) == 3 for seed in range(50))


def test_neighbors_that_are_not_perturbed_are_one_pass():
    parts = merge_unperturbed([4, 4, 3, 3, 3], [False, False, True, False, False])
    assert [tuple(part) for part in parts] == [(8, False), (3, True), (6, False)]
    passes = []
    net = network(batch_norm=False, dropout=False)
    net.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    x, y = batch()
    regularized_gradient(
        net, x, y, beta=1.0, gradient="shared", perturbed=1, generator=torch.Generator().manual_seed(1)
    )
    assert sum(passes) == 16 + 2
    assert len(passes) <= 4
    passes.clear()
    regularized_gradient(net, x, y, beta=1.0, gradient="full", perturbed=1)
    assert sorted(passes) == [2, 2, 16]


def test_frozen_and_unused_parameters_get_zeros():
    net, (x, y) = network(), batch()
    net[0].weight.requires_grad_(False)
    net.unused = nn.Parameter(torch.ones(2).double())
    for gradient in ("full", "shared"):
        found = regularized_gradient(net, x, y, beta=1.0, num_sub_batches=4, gradient=gradient).gradient
        by_name = dict(zip(dict(net.named_parameters()), found, strict=True))
        assert by_name["0.weight"].count_nonzero() == by_name["unused"].count_nonzero() == 0
        assert by_name["5.weight"].count_nonzero() > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"beta": -1.0}, "beta.*-1.0"),
        ({"gradient": "half"}, "gradient.*full.*shared.*'half'"),
        ({"perturbed": 0}, "perturbed.*0"),
        ({"perturbed": 5}, "perturbed.*4 sub-batches.*5"),
        ({"perturbed": True}, "perturbed.*True"),
        ({"num_sub_batches": 17}, "num_sub_batches.*17"),
    ],
)
def test_bad_options_are_named(options, text):
    net, (x, y) = network(), batch()
    with pytest.raises(ValueError, match=f"Expected argument.*{text}"):
        regularized_gradient(net, x, y, **{"beta": 1.0, "num_sub_batches": 4, **options})

"""Modules for which the plain loop is fastest: later calls are that loop, right, and verified where it takes that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.fisher.layers import layer_gram_matrices
from lightning_fisher.functional.gram import block
from lightning_fisher.functional.gram.single_passes import one_by_one
from tests.functional.compare import gram_error
from tests.reference.jacobian import gram, jacobian

N = 6
SIZES = []  # not an attribute of the module: those are put back


@pytest.fixture(autouse=True)
def never_at_once(monkeypatch):
    """See test_batched.py for that."""
    monkeypatch.setattr(block, "can_be_batched", lambda problem: False)


class Recurrent(nn.Module):
    """Most parameters are those of a layer without a rule."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)
        self.bend = torch.tanh

    def forward(self, x):
        SIZES.append(len(x))
        return self.out(self.bend(self.cell(x)[0][:, -1]))


class Shifted(nn.Module):
    """One parameter, of a few, that reaches a function without a rule."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.slope = nn.Parameter(torch.rand(5))

    def forward(self, x):
        SIZES.append(len(x))
        h = self.body(x)
        return self.out(torch.where(h > 0, h, h.expm1() * torch.sinh(self.slope)))


class Branches(nn.Module):
    """A branch a sample, chosen by its data; with ``coupling`` the batch changes the outputs of large samples."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

    def forward(self, x):
        SIZES.append(len(x))
        shift = 0.1 * x[x.sum(1) > 50].sum()
        return torch.stack([self.branches[int(row.sum() > 0)](row) for row in x]) + shift


class Backward(torch.autograd.Function):
    """Passes its input on; the gradients of two samples mix in the backward pass once values are large."""

    @staticmethod
    def forward(ctx, x):
        ctx.mix = bool((x.detach().abs() > 50).any()) and len(x) > 1
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + gradient.roll(1, 0) if ctx.mix else gradient


class MixedBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.out(self.cell(torch.sinh(self.scale) * Backward.apply(x * self.scale))[0][:, -1])


def samples(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (N, 4, 3) if kind in (Recurrent, MixedBackward) else (N, 4)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (N,), generator=generator)


def made(kind):
    torch.manual_seed(0)
    module = kind().double()
    gram_matrix(module, *samples(kind))
    SIZES.clear()
    return module


@pytest.mark.parametrize("kind", [Recurrent, Shifted])
def test_later_calls_take_one_pass_a_sample_and_no_other(kind):
    module = made(kind)
    for seed in (1, 2):
        found = gram_matrix(module, *samples(kind, seed))
        assert SIZES == [1] * N
        assert gram_error(found, gram(jacobian(module, *samples(kind, seed)))) < 1e-12
        SIZES.clear()


def test_the_batch_runs_too_where_branches_depend_on_the_data():
    module = made(Branches)
    found = gram_matrix(module, *samples(Branches, 1))
    assert SIZES == [1] * N + [N]
    assert gram_error(found, gram(jacobian(module, *samples(Branches, 1)))) < 1e-12


def test_samples_that_affect_each_other_in_a_later_call_are_refused():
    module = made(Branches)
    x, y = samples(Branches, 1)
    x[2] = 30.0
    with pytest.raises(ValueError, match="samples"):
        gram_matrix(module, x, y)


def test_backward_passes_that_mix_samples_in_a_later_call_are_refused():
    module = made(MixedBackward)
    x, y = samples(MixedBackward, 1)
    assert gram_error(gram_matrix(module, x, y), gram(jacobian(module, x, y))) < 1e-12
    x[2, 0] = 60.0
    with pytest.raises(ValueError, match="other samples"):
        gram_matrix(module, x, y)


def test_another_function_is_found_out():
    module = made(Recurrent)
    module.bend = lambda h: torch.tanh(h - h.mean(0))
    with pytest.raises(ValueError, match="interact"):
        gram_matrix(module, *samples(Recurrent))
    module.bend = torch.sin
    x, y = samples(Recurrent, 1)
    assert gram_error(gram_matrix(module, x, y), gram(jacobian(module, x, y))) < 1e-12


@pytest.mark.parametrize("scale", ["layer", "filter", "element"])
def test_gradients_with_a_scale(scale):
    module, (x, y) = made(Shifted), samples(Shifted, 1)
    found = gram_matrix(module, x, y, scale=scale)
    assert SIZES == [1] * N
    J = _parts(module, jacobian(module, x, y))
    expected = torch.zeros(N, N, dtype=torch.float64)
    for rows, parameter in zip(J, module.parameters(), strict=True):
        w = parameter.detach()
        factors = {"layer": w.norm().expand_as(w), "element": w}.get(scale)
        if factors is None:  # one number for each unit of a vector
            norms = w.flatten(1).norm(dim=1) if w.ndim > 1 else w.abs()
            factors = norms.view(-1, *[1] * (w.ndim - 1)).expand_as(w)
        expected += gram(rows * factors.reshape(-1))
    assert gram_error(found, expected) < 1e-12


def test_parameters_apart():
    module, (x, y) = made(Shifted), samples(Shifted, 1)
    apart = layer_gram_matrices(module, x, y)
    assert SIZES == [1] * N
    J = dict(zip(dict(module.named_parameters()), _parts(module, jacobian(module, x, y)), strict=True))
    assert gram_error(apart["body"], gram(torch.cat([J["body.weight"], J["body.bias"]], 1))) < 1e-12
    assert gram_error(apart["out"], gram(torch.cat([J["out.weight"], J["out.bias"]], 1))) < 1e-12
    assert sum(m.diagonal().sum() for m in apart.values()) == pytest.approx(sum(j.square().sum() for j in J.values()))


def _parts(module, J):
    return J.split([p.numel() for p in module.parameters()], 1)


def test_losses_of_ones_own():
    module, (x, y) = made(Recurrent), samples(Recurrent, 1)

    def loss(outputs, targets):
        return (outputs - targets.unsqueeze(1)).square().sum(1).mean()

    gram_matrix(module, x, y, loss_fn=loss)
    found = gram_matrix(module, x, y, loss_fn=loss)
    assert gram_error(found, gram(jacobian(module, x, y, loss_fn=loss))) < 1e-12


def test_not_where_J_takes_too_much_memory(monkeypatch):
    module = made(Recurrent)
    monkeypatch.setattr(one_by_one, "rows_fit", lambda problem, elements: False)
    found = gram_matrix(module, *samples(Recurrent, 1))
    assert N in SIZES
    assert gram_error(found, gram(jacobian(module, *samples(Recurrent, 1)))) < 1e-12


def test_large_modules_with_few_parameters_without_a_rule_keep_their_rules(monkeypatch):
    monkeypatch.setattr(one_by_one, "SMALL", 10)
    module = made(Shifted)
    found = gram_matrix(module, *samples(Shifted, 1))
    assert SIZES[0] == N
    assert gram_error(found, gram(jacobian(module, *samples(Shifted, 1)))) < 1e-12

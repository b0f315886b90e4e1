"""What is wrong with a matrix is found, whatever it is: sabotage, 20 draws of each, and 100 in the slow form."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from lightning_fisher.exceptions import InteractionError
from lightning_fisher.functional import gram_matrix
from lightning_fisher.functional.gram import layerwise
from lightning_fisher.functional.gram.rules.linear import Linear
from lightning_fisher.functional.gram.rules.normalization import ChannelNorm
from tests.functional.compare import relative_error
from tests.reference.jacobian import gram, jacobian

N = 20
COUNTS = [20, pytest.param(100, marks=pytest.mark.slow)]


def network():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def draws(count, make=network):
    for seed in range(count):
        torch.manual_seed(seed)
        module, x, y = make(), torch.randn(N, 2, 6), torch.randint(3, (N,))
        yield module, x, y


def scaled_rule(monkeypatch):
    """A rule that is 1 % off, in a layer with few parameters."""
    right = ChannelNorm.bias_rows
    monkeypatch.setattr(ChannelNorm, "bias_rows", lambda self, G, arguments: 1.01 * right(self, G, arguments))


def wrong_rule(monkeypatch):
    """A rule that forgets the first feature of the input."""

    def rows(self, A, G, arguments, block):
        return G[..., block].unsqueeze(2) * A[..., 1:].unsqueeze(1)

    monkeypatch.setattr(Linear, "weight_gram", lambda self, A, G, arguments, workspace: None)
    monkeypatch.setattr(Linear, "weight_rows", rows)


def changed_rows(monkeypatch, change):
    """Every output gradient's samples go through ``change``."""
    right = layerwise.arrange

    def arrange(tensor, layout, count):
        return change(right(tensor, layout, count).clone())

    monkeypatch.setattr(layerwise, "arrange", arrange)


def swapped(monkeypatch):
    def change(rows):
        a, b = torch.randperm(N)[:2].tolist()
        rows[[a, b]] = rows[[b, a]]
        return rows

    changed_rows(monkeypatch, change)


def lost(monkeypatch):
    def change(rows):
        rows[int(torch.randint(N, ()))] = 0
        return rows

    changed_rows(monkeypatch, change)


@functools.cache
def expected(count):
    return [gram(jacobian(*draw)) for draw in draws(count)]


def errors(count):
    return [
        relative_error(gram_matrix(*draw), value) for draw, value in zip(draws(count), expected(count), strict=True)
    ]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("sabotage", [None, scaled_rule, wrong_rule, swapped, lost])
def test_sabotage_is_found_and_mended(sabotage, count, monkeypatch):
    if sabotage is not None:
        sabotage(monkeypatch)
    assert max(errors(count)) < 1e-5


@pytest.mark.parametrize("sabotage", [scaled_rule, wrong_rule, swapped, lost])
def test_without_the_check_it_would_be_wrong(sabotage, monkeypatch):
    monkeypatch.setattr("lightning_fisher.functional.gram.block._Block._verify", lambda self, hooked: None)
    sabotage(monkeypatch)
    assert min(errors(5)) > 1e-4


class _CouplesTheLastTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[-2:] = gradient[-2:] + 0.1 * gradient[-2:].flip(0)
        return gradient


class CouplesTheLastTwo(nn.Module):
    """In a batch of more than one, the backward pass only."""

    def forward(self, x):
        return _CouplesTheLastTwo.apply(x) if len(x) > 1 else x


@pytest.mark.parametrize("count", COUNTS)
def test_coupling_of_the_last_two_in_the_backward_pass_is_refused(count):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), CouplesTheLastTwo(), nn.Linear(8, 3))

    for draw in draws(count, make):
        with pytest.raises(InteractionError, match="gradient, though not its output"):
            gram_matrix(*draw)


def test_small_rows_count_as_much_as_large_ones(monkeypatch):
    """A sample whose gradient is a thousandth of the others' is lost."""

    class Faint(nn.Module):
        def forward(self, x):
            return torch.cat([x[:3], 1e-3 * x[3:4], x[4:]]) if len(x) == N else x * (1e-3 if x[0, 0, 0] == 5 else 1.0)

    torch.manual_seed(0)
    x = torch.randn(N, 2, 6).double()
    x[3, 0, 0] = 5
    y = torch.randint(3, (N,))
    module = nn.Sequential(Faint(), nn.Flatten(), nn.Linear(12, 3, bias=False)).double()
    found = []

    def change(rows):
        rows[3] = 0
        found.append(True)
        return rows

    changed_rows(monkeypatch, change)
    got = gram_matrix(module, x, y)
    assert found
    assert got[3, 3] > 0


def test_rounding_at_kinks_is_accepted_once():
    """In float32 the outputs move by 1e-3 with the size of the batch; float64 settles it, in the first call."""
    settled = []

    class RoundsByBatchSize(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            if x.dtype == torch.float64:
                settled.append(len(x))
            x = self.layer(x)
            return x + (1e-3 * len(x) if x.dtype == torch.float32 else 0.0)

    torch.manual_seed(0)
    module, inputs, targets = RoundsByBatchSize(), torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0])
    expected = gram(jacobian(module, inputs, targets))
    settled.clear()
    for _ in range(3):
        assert relative_error(gram_matrix(module, inputs, targets), expected) < 1e-2
    assert settled == [1, 5, 1, 1, 1, 1, 1]  # one to see its precision, all together, one by one

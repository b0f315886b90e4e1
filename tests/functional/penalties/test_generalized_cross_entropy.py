"""generalized_cross_entropy against its formula in plain float64 Python, and its two ends."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_fisher.functional import generalized_cross_entropy

LOGITS = [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [-4.0, 2.0, 2.5]]
TARGETS = [0, 2, 1]


def by_hand(q):
    """Mean of (1 − p^q)/q, and its gradient: p^q (p_j − 1[j = y]) of each sample, over N."""
    total, gradient = 0.0, []
    for row, y in zip(LOGITS, TARGETS, strict=True):
        p = [math.exp(z) / sum(map(math.exp, row)) for z in row]
        total += (1 - p[y] ** q) / q
        gradient.append([p[y] ** q * (p[j] - (j == y)) / len(LOGITS) for j in range(3)])
    return total / len(LOGITS), gradient


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_value_and_gradient(q):
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    loss = generalized_cross_entropy(z, torch.tensor(TARGETS), q=q)
    loss.backward()
    value, gradient = by_hand(q)
    assert loss.item() == pytest.approx(value, rel=1e-13)
    torch.testing.assert_close(z.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-12, atol=1e-15)


def test_its_ends_are_the_cross_entropy_and_half_the_absolute_error():
    z, y = torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(TARGETS)
    assert generalized_cross_entropy(z, y, q=1e-10).item() == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-9)
    error = (F.one_hot(y, 3) - z.softmax(1)).abs().sum(1).mean() / 2
    assert generalized_cross_entropy(z, y, q=1.0).item() == pytest.approx(error.item(), rel=1e-14)


def test_a_label_that_is_hopeless_has_a_finite_loss_and_no_gradient():
    z = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = generalized_cross_entropy(z, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(1 / 0.7)
    assert torch.equal(z.grad, torch.zeros(1, 2))


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1, math.nan, "0.7", True])
def test_q_is_checked(q):
    with pytest.raises(ValueError, match="Expected argument `q` to be a number above 0 and at most 1, but got"):
        generalized_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), q=q)


@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (torch.zeros(2), torch.tensor([0, 1]), "`logits`"),
        (torch.zeros(2, 3), torch.tensor([0]), "`targets` to hold 2"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "0…2"),
    ],
)
def test_shapes_are_checked(logits, targets, text):
    with pytest.raises(ValueError, match=text):
        generalized_cross_entropy(logits, targets)

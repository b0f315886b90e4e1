"""Tensors without elements: parameters of width zero, outputs of length zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss

from lightning_fisher.functional import fisher_log_det, gram_matrix, penalty_gradient
from lightning_fisher.functional.measures import fisher_rao_norm
from tests.reference import plain


class Adaptive(nn.Module):
    """Its rarest classes are projected to ``6 // 16 = 0`` features."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.AdaptiveLogSoftmaxWithLoss(6, 9, [3, 6])

    def forward(self, x):
        return self.head.log_prob(self.inner(x).tanh())


class Optional(nn.Module):
    """Returns extra outputs that are empty, and has an empty bottleneck."""

    def __init__(self):
        super().__init__()
        self.inner, self.down, self.up = nn.Linear(5, 4), nn.Linear(4, 0), nn.Linear(0, 4)
        self.outer = nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.inner(x).tanh()
        return self.outer(hidden + self.up(self.down(hidden))), x.new_zeros(len(x), 0)


def first(outputs, targets):
    return cross_entropy(outputs[0], targets, reduction="none")


def likelihood(outputs, targets):
    return nll_loss(outputs, targets, reduction="none")


@pytest.mark.parametrize(("build", "loss", "classes"), [(Adaptive, likelihood, 9), (Optional, first, 3)])
def test_empty_tensors_count_for_nothing(build, loss, classes):
    torch.manual_seed(0)
    module, x, y = build(), torch.randn(7, 5), torch.randint(classes, (7,))
    wide = copy.deepcopy(module).double()
    rows = plain.gradient_rows(wide, x.double(), y, 7, loss)
    for _ in range(3):
        found = gram_matrix(module, x, y, loss_fn=loss)
        torch.testing.assert_close(found, rows @ rows.T, rtol=1e-4, atol=1e-5)
    wide_found = gram_matrix(wide, x.double(), y, loss_fn=loss)
    torch.testing.assert_close(wide_found, rows @ rows.T, rtol=1e-9, atol=1e-12)
    log_det = fisher_log_det(wide, x.double(), y, loss_fn=loss).log_det
    torch.testing.assert_close(log_det, torch.logdet(rows @ rows.T), rtol=1e-9, atol=0)
    weights = plain.flat(list(wide.parameters())).detach()
    norm = fisher_rao_norm(wide, x.double(), y, loss_fn=loss)
    torch.testing.assert_close(norm, (rows @ weights).square().mean().sqrt(), rtol=1e-9, atol=0)
    parts = [torch.arange(7)[:4], torch.arange(7)[4:]]
    value, gradient = plain.penalty(wide, x.double(), y, parts, [4 / 7, 3 / 7], 1e-2, lambda o, t: loss(o, t).mean())
    options = {"alpha": 1e-2, "num_sub_batches": 2, "loss_fn": loss}
    found_value, found_gradient = penalty_gradient(wide, x.double(), y, **options)
    assert found_value.item() == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(plain.flat(found_gradient), plain.flat(gradient), rtol=1e-6, atol=1e-12)

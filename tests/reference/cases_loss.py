"""Cases of targets, losses and extra output dimensions, and of J without full row rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.reference import modules as m
from tests.reference.case import Case, classes, normal, probabilities
from tests.reference.cases_conv import IMAGES
from tests.reference.cases_linear import VECTORS, mlp


def repeated(build, index):
    """The inputs with the rows of ``index``, so that samples occur twice."""
    return lambda: build()[torch.tensor(index)]


def first_row_zero():
    x = VECTORS()
    x[0] = 0
    return x


def binary(z, y):
    return F.binary_cross_entropy_with_logits(z.squeeze(1), y, reduction="none")


LOSS_CASES = [
    Case("soft_labels", mlp, VECTORS, probabilities()),
    Case("one_hot_labels", mlp, VECTORS, lambda: torch.eye(3)[torch.tensor([0, 2, 1, 1, 0])]),
    Case("extra_dims", lambda: nn.Conv1d(6, 3, 2), normal(5, 6, 5), classes(5, 3, 4)),
    Case("extra_dims_2d", lambda: nn.Conv2d(2, 3, 3, padding=1), IMAGES, classes(5, 3, 6, 6)),
    Case("extra_dims_soft", lambda: nn.Conv1d(6, 3, 1), normal(5, 6, 5), probabilities(5, 3, 5)),
    Case("loss_mean", mlp, VECTORS, loss_fn=lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1)),
    Case("loss_none", mlp, VECTORS, loss_fn=lambda z, y: F.cross_entropy(z, y, reduction="none")),
    Case("loss_module", mlp, VECTORS, loss_fn=nn.CrossEntropyLoss(label_smoothing=0.2)),
    Case("loss_squared_mean", mlp, VECTORS, normal(5, 3), F.mse_loss),
    Case("loss_squared_none", mlp, VECTORS, normal(5, 3), lambda z, y: (z - y).pow(2).sum(1)),
    Case("loss_of_tokens", lambda: nn.Conv1d(6, 3, 2), normal(5, 6, 5), classes(5, 3, 4), F.cross_entropy),
    Case("loss_binary", lambda: nn.Linear(6, 1), VECTORS, lambda: torch.rand(5).round(), binary),
    Case(
        "loss_of_tuple",
        lambda: m.Lambda(lambda s, x: (s.f(x), s.g(x)), f=nn.Linear(6, 3), g=nn.Linear(6, 3)),
        VECTORS,
        loss_fn=lambda z, y: F.cross_entropy(z[0] * z[1], y, reduction="none"),
    ),
]

DEFICIENT_CASES = [
    Case(
        "duplicate_samples",
        mlp,
        repeated(VECTORS, [0, 1, 0, 2, 3]),
        lambda: torch.tensor([2, 1, 2, 0, 0]),
        full_rank=False,
    ),
    Case("more_samples_than_weights", lambda: nn.Linear(2, 3), normal(9, 2), classes(9), full_rank=False),
    Case(
        "zero_gradient",
        lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)),
        first_row_zero,
        full_rank=False,
    ),
]

"""Cases whose samples interact, so that a per-sample gradient does not exist; and a few exotic ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.reference import modules as m
from tests.reference.case import Case, tokens
from tests.reference.cases_conv import IMAGES, net
from tests.reference.cases_linear import SEQUENCES, VECTORS, mlp, over_tokens

BATCH_STATISTICS = Case(
    "batch_norm_without_running_statistics",
    lambda: net(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    IMAGES,
)


def batch_normalized(x):
    return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-3)


def weighted_cross_entropy(z, y):
    """Its mean is divided by the weights of the whole batch: not a mean of per-sample losses."""
    return F.cross_entropy(z, y, weight=torch.tensor([1.0, 5.0, 0.2], dtype=z.dtype))


def contrastive(z, y):
    """Two views of each sample; the other samples are the negatives: no loss of a sample alone."""
    del y
    return F.cross_entropy(z[:, :2] @ z[:, 2:].T, torch.arange(len(z)), reduction="none")


# What a mean loss divides by, as a function of the targets, where that isn't the number of samples.
DENOMINATORS = {"weighted_mean_loss": lambda y: sum([1.0, 5.0, 0.2][label] for label in y.tolist())}

REFUSED = [
    BATCH_STATISTICS,
    Case("custom_batch_normalization", lambda: mlp(m.Apply(batch_normalized)), VECTORS),
    Case(
        "functional_batch_norm",
        lambda: mlp(m.Apply(lambda x: F.batch_norm(x, None, None, training=True))),
        VECTORS,
    ),
    Case("batch_normalized_input", lambda: nn.Sequential(m.Apply(batch_normalized), mlp()), VECTORS),
    Case("batch_normalized_logits", lambda: nn.Sequential(mlp(), m.Apply(batch_normalized)), VECTORS),
    Case("slightly_centered", lambda: mlp(m.Apply(lambda x: x - 1e-3 * x.mean(0))), VECTORS),
    Case("neighbor", lambda: mlp(m.Apply(lambda x: x + 0.1 * x.roll(1, 0))), VECTORS),
    Case("softmax_over_the_batch", lambda: mlp(m.Apply(lambda x: x.softmax(0))), VECTORS),
    Case("divided_by_batch_size", lambda: mlp(m.Apply(lambda x: x / len(x))), VECTORS),
    Case(
        "attention_over_the_batch",
        lambda: m.Lambda(
            lambda s, x: s.out(s.attention(x, x, x, need_weights=False)[0].mean(1)),
            attention=nn.MultiheadAttention(6, 2),  # batch_first is missing: it attends along dim 0
            out=nn.Linear(6, 3),
        ),
        SEQUENCES,
    ),
]

RIGHT_OR_REFUSED = [
    Case("embedding_by_frequency", lambda: over_tokens(nn.Embedding(7, 6, scale_grad_by_freq=True)), tokens()),
    Case("embedding_sparse", lambda: over_tokens(nn.Embedding(7, 6, sparse=True)), tokens()),
    Case("embedding_max_norm", lambda: over_tokens(nn.Embedding(7, 6, max_norm=1.0)), tokens()),
    Case("weighted_mean_loss", mlp, VECTORS, loss_fn=weighted_cross_entropy),
    Case("contrastive_loss", lambda: nn.Linear(6, 4), VECTORS, loss_fn=contrastive),
    Case(
        "loss_of_centered_logits",
        mlp,
        VECTORS,
        loss_fn=lambda z, y: F.cross_entropy(z - 0.5 * z.mean(0), y, reduction="none"),
    ),
]

"""Errors between a result and its reference, in the scale that shows a mistake."""

from __future__ import annotations

import torch


def relative_error(got, expected):
    """``||got - expected|| / ||expected||``; absolute where the expected value is zero."""
    scale = expected.double().norm()
    return ((got.double() - expected.double()).norm() / (scale if scale > 0 else 1.0)).item()


def gram_error(got, expected):
    """Largest error of an entry relative to ``sqrt(xi_ii xi_jj)``: small rows count as much as large ones."""
    norms = expected.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    return ((got - expected) / (norms[:, None] * norms[None, :])).abs().max().item()


def gradient_error(got, expected):
    """Relative error of all parameters' gradients as one vector."""
    return relative_error(flat(got), flat(expected))


def cosine(got, expected):
    return torch.nn.functional.cosine_similarity(flat(got).double(), flat(expected).double(), dim=0).item()


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])

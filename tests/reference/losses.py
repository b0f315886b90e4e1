"""The loss of one sample, written out from its definition."""

from __future__ import annotations

import torch

from tests.reference.output_gradient import output_gradient


def normalize_logits(logits, scale):
    """``z / (s ||z||_2)``, the norm over the classes (dim 1)."""
    return logits / (scale * logits.pow(2).sum(dim=1, keepdim=True).sqrt())


def sample_loss(logits, target):
    """Cross-entropy ``-sum_k t_k ln p_k`` of the one sample in ``logits [1, K, ...]``, mean over the rest."""
    if logits.shape[0] != 1:
        raise ValueError(f"one sample at a time, got {logits.shape[0]}")
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    if target.is_floating_point():
        return -(target * log_p).sum(dim=1).mean()
    return -log_p.gather(1, target.unsqueeze(1)).mean()


def differentiable(logits, target, loss_fn=None, logit_norm=None):
    """A scalar with the gradient of one sample's loss; for the cross-entropy in its cancellation-free form."""
    if logit_norm is not None:
        logits = normalize_logits(logits, logit_norm)
    if loss_fn is not None:
        return loss_fn(logits, target).sum()
    return (logits * output_gradient(logits, target)).sum()


def batch_loss(outputs, targets, loss_fn=None):
    """Mean loss of a batch: one sample's loss after the other, then their mean."""
    if loss_fn is not None:
        return loss_fn(outputs, targets).mean()
    losses = [sample_loss(outputs[j : j + 1], targets[j : j + 1]) for j in range(len(targets))]
    return torch.stack(losses).mean()

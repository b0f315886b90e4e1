"""The gradient of the cross-entropy with respect to the logits, without the cancellation in ``p_y - 1``.

Against class y it is ``p_k`` for ``k != y`` and ``-sum_{k != y} p_k`` for y. In units of ``exp(m)``,
``m = max_{k != y} ln p_k``, nothing cancels and nothing underflows, however small the loss.
"""

from __future__ import annotations

import torch


def scaled_output_gradient(logits, label):
    """``(u [K], m)`` with ``d loss / d logits = exp(m) u`` for one sample's logits ``[K]``, detached."""
    logits = logits.detach()
    log_p = logits - torch.logsumexp(logits, dim=0)
    others = torch.arange(len(logits)) != label
    log_scale = log_p[others].max()
    gradient = (log_p - log_scale).exp()
    gradient[label] = -gradient[others].sum()
    return gradient, log_scale.item()


def output_gradient(logits, target):
    """Gradient ``[1, K, ...]`` of one sample's loss: class indices ``[1, ...]`` or probabilities."""
    gradient = torch.empty_like(logits.detach())
    positions = logits[0, 0].numel()
    flat_logits, flat_gradient = (
        logits.detach().reshape(1, logits.shape[1], positions),
        gradient.view(1, logits.shape[1], positions),
    )
    for position in range(positions):
        z = flat_logits[0, :, position]
        if target.is_floating_point():
            t = target.reshape(1, logits.shape[1], positions)[0, :, position]
            column = torch.softmax(z, dim=0) * t.sum() - t
        else:
            scaled, log_scale = scaled_output_gradient(z, target.reshape(positions)[position])
            column = torch.tensor(log_scale, dtype=z.dtype).exp() * scaled
        flat_gradient[0, :, position] = column / positions
    return gradient

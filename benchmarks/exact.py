"""The Gram matrix to compare with: one sample after the other, in float64, with a loss that does not cancel."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Exact(NamedTuple):
    """ξ in float64, its log-determinant, and the mean loss it was taken at."""

    gram: Tensor
    log_det: float
    loss: float


def exact_gram(net: nn.Module, images: Tensor, labels: Tensor) -> Exact:
    """ξ and ln|ξ| by N backward passes of single samples in float64.

    The gradient of the loss with respect to the logits is ``p_k`` and, of the label, ``−Σ_{k≠y} p_k``: the textbook
    ``p_y − 1`` loses every digit when the loss is small. ``ln|ξ| = Σ_j 2 ln‖∇ℓ_j‖ + ln|C|``, C the cosine similarities.

    Args:
        net: in evaluation mode; copied.
        images: N images.
        labels: N class indices.
    """
    net = copy.deepcopy(net).double().cpu()
    parameters = list(net.parameters())
    rows, losses = [], []
    for image, label in zip(images.double().cpu(), labels.tolist(), strict=True):
        logits = net(image[None])
        log_p = logits.detach()[0].log_softmax(0)
        delta = log_p.exp()
        delta[label] = 0
        delta[label] = -delta.sum()
        losses.append(-torch.log1p(delta[label]))
        gradients = torch.autograd.grad((logits[0] * delta).sum(), parameters)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    norms = jacobian.norm(dim=1)
    units = jacobian / norms[:, None]
    log_det = 2 * norms.log().sum() + torch.linalg.slogdet(units @ units.T).logabsdet
    return Exact(jacobian @ jacobian.T, log_det.item(), torch.stack(losses).mean().item())

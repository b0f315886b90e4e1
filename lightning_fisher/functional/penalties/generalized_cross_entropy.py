"""The generalized cross-entropy: between the cross-entropy and the mean absolute error."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_fisher.arguments import require_number
from lightning_fisher.functional.penalties.logits import check_logits


def require_q(q: Any) -> None:
    """Refuse what is no q of `generalized_cross_entropy`.

    Raises:
        ValueError: In one line.
    """
    require_number("q", q, math.ulp(0.0), 1.0, "a number above 0 and at most 1")


def generalized_cross_entropy(logits: Tensor, targets: Tensor, *, q: float = 0.7) -> Tensor:
    """Generalized cross-entropy, the loss L_q of Zhang & Sabuncu (2018), in place of the cross-entropy.

    ``1/N Σ_i (1 − p_{i,y_i}^q) / q`` with the softmax probability p of the label: the cross-entropy for q → 0, half the
    mean absolute error for q = 1. The gradient of a sample is that of its cross-entropy times ``p_{i,y_i}^q``, so that
    labels the network doesn't believe, wrong ones among them, pull less. The truncated loss of that paper isn't here.

    Cost: that of the cross-entropy. Computed from log-probabilities: exact also where p is 0 or q small.

    Args:
        logits: ``[N, K]``.
        targets: Class indices ``[N]``.
        q: 0 < q ≤ 1; 0.7 is the authors'.

    Returns:
        The loss, a scalar with its graph, from 0 to 1/q.

    Raises:
        ValueError: If shapes or q don't fit.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import generalized_cross_entropy
        >>> logits, y = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
        >>> print(f"{generalized_cross_entropy(logits, y, q=1.0):.3f}")  # 1 - p: 0.119 and 0.881
        0.500
    """
    check_logits(logits, targets)
    require_q(q)
    log_p = logits.log_softmax(1).gather(1, targets.unsqueeze(1))
    return -torch.expm1(q * log_p).mean() / q

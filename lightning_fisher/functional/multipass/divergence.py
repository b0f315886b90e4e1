"""How divergent the sub-batch gradients are, in magnitude and direction (Fig. 1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Divergence(NamedTuple):
    """Spread of M gradients.

    Attributes:
        norm_variance: Variance of ``‖g_i‖`` over i (divided by M).
        cosine: Mean of ``cos(g_i, g_k)`` over the pairs i ≠ k; ``nan`` where fewer than two gradients are non-zero.
    """

    norm_variance: Tensor
    cosine: Tensor


class DivergenceAccumulator:
    """Divergence of gradients that come one at a time; holds the sum of unit gradients ĝ, not M gradients.

    ``Σ_{i≠k} ĝ_i·ĝ_k = ‖Σ_i ĝ_i‖² − n`` with the n gradients that aren't zero.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._flat: Tensor | None = None  # the last gradient, and its parts in there: memory that is used again
        self._parts: list[Tensor] = []
        self._norms: list[Tensor] = []

    def add(self, gradient: Sequence[Tensor]) -> None:
        """Add one gradient, given as tensors (they are not modified)."""
        flat = self._flattened([part.detach() for part in gradient])
        norm = torch.linalg.vector_norm(flat)
        inverse = torch.where(norm > 0, 1 / norm, 0.0)
        self._norms.append(norm)
        self._sum = flat * inverse if self._sum is None else self._sum.addcmul_(flat, inverse)

    def _flattened(self, gradient: list[Tensor]) -> Tensor:
        """In float64, one vector."""
        if self._flat is None or [part.shape for part in gradient] != [part.shape for part in self._parts]:
            sizes = [part.numel() for part in gradient]
            self._flat = torch.empty(sum(sizes), dtype=torch.float64, device=gradient[0].device)
            pieces = self._flat.split(sizes)
            self._parts = [piece.view(part.shape) for piece, part in zip(pieces, gradient, strict=True)]
        torch._foreach_copy_(self._parts, gradient)
        return self._flat

    def compute(self) -> Divergence:
        """The divergence of what was added, float64; ``nan`` of nothing."""
        if self._sum is None:
            nothing = torch.full((), torch.nan, dtype=torch.float64)
            return Divergence(nothing, nothing)
        norms = torch.stack(self._norms)
        count = (norms > 0).sum().double()
        pairs = self._sum.dot(self._sum) - count
        cosine = torch.where(count > 1, pairs / (count * (count - 1)), torch.nan)
        return Divergence(norms.var(correction=0), cosine)


def gradient_divergence(gradients: Iterable[Sequence[Tensor]]) -> Divergence:
    """Variance of the norms and mean pairwise cosine of gradients, what the regularizer acts on (Fig. 1).

    Args:
        gradients: M gradients, each a sequence of tensors (one a parameter) or a single tensor.

    Returns:
        A `Divergence`, float64.

    Raises:
        ValueError: If there is no gradient.

    Example:
        >>> import torch
        >>> from lightning_fisher.functional import gradient_divergence
        >>> result = gradient_divergence([[torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 1.0])]])
        >>> float(result.norm_variance), float(result.cosine)
        (1.0, 0.0)
    """
    accumulator, given = DivergenceAccumulator(), False
    for gradient in gradients:
        accumulator.add([gradient] if isinstance(gradient, Tensor) else gradient)
        given = True
    if not given:
        raise ValueError("Expected at least one gradient, but got none.")
    return accumulator.compute()

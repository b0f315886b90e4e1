"""ξ = J Jᵀ, the Gram matrix of per-sample gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.functional.gram.matrix import ScaledGram, gram_matrix, scaled_gram

__all__ = ["ScaledGram", "gram_matrix", "scaled_gram"]

__getattr__, __dir__ = lazy_exports(__name__)

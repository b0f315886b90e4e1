"""ξ = J Jᵀ, the Gram matrix of per-sample gradients."""

from lightning_fisher.functional.gram.matrix import ScaledGram, gram_matrix, scaled_gram

__all__ = ["ScaledGram", "gram_matrix", "scaled_gram"]

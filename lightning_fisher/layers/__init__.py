"""Layers that the regularizer is compared with."""

from __future__ import annotations

from lightning_fisher.layers.ghost_batch_norm import GhostBatchNorm, convert_ghost_batch_norm

__all__ = ["GhostBatchNorm", "convert_ghost_batch_norm"]

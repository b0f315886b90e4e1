"""Layers that the regularizer is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.layers.ghost_batch_norm import GhostBatchNorm, convert_ghost_batch_norm

__all__ = [
    "GhostBatchNorm",
    "convert_ghost_batch_norm",
]

__getattr__, __dir__ = lazy_exports(__name__)

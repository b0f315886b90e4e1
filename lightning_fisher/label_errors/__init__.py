"""Find wrong labels by the gradients of single samples over a training.

`LabelErrorRecorder` is a Lightning callback for any classifier, `LabelScores` what it recorded: scores, a ranking, a
CSV file. ``python -m lightning_fisher.label_errors`` does the whole for images, without a line of code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.label_errors.image_grid import plot_suspects
    from lightning_fisher.label_errors.recorder import LabelErrorRecorder
    from lightning_fisher.label_errors.scores import LabelScores, roc_auc

__all__ = [
    "LabelErrorRecorder",
    "LabelScores",
    "plot_suspects",
    "roc_auc",
]

__getattr__, __dir__ = lazy_exports(__name__)

"""The networks of a zoo again from their rows, to try a measure of one's own on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fisher.lazy import lazy_exports

if TYPE_CHECKING:
    from lightning_fisher.experiment.zoo.entry import Entry, enter
    from lightning_fisher.experiment.zoo.loading import ZooNetwork, networks

__all__ = ["Entry", "ZooNetwork", "enter", "networks"]

__getattr__, __dir__ = lazy_exports(__name__)

"""A pass of `training_step` that leaves no trace in the module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_fisher.callbacks.multipass.attribute_snapshot import AttributeSnapshot
from lightning_fisher.callbacks.multipass.logged_values import silenced


class SkippedError(Exception):
    """`training_step` returned None for a sub-batch."""


@contextmanager
def extra_pass(module: nn.Module, thorough: bool) -> Iterator[None]:
    """Log nothing, put attributes back, and refuse what can't be put back.

    Args:
        module: The module.
        thorough: Look at what takes longer to compare, too.

    Raises:
        ValueError: On the way out, if the pass changed what can't be put back.
    """
    attributes = AttributeSnapshot(module, thorough=thorough)
    try:
        with silenced(module):
            yield
    finally:
        attributes.restore()
    attributes.refuse_lost()

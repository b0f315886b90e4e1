"""Refuse infinities and nan, naming the samples they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_fisher.exceptions import NonFiniteError


def require_finite(values: Tensor, what: str) -> None:
    """Refuse infinities and nan in ``[N, …]`` values, samples in dimension 0; costs a host synchronization.

    Raises:
        NonFiniteError: Naming the samples.
    """
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise NonFiniteError(what, torch.nonzero(~finite.reshape(len(finite), -1).all(1)).flatten().tolist())


@contextmanager
def samples_of_a_batch(indices: Sequence[int] | Tensor) -> Iterator[None]:
    """Have a `NonFiniteError` name the samples by their ``indices`` in the whole batch."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(error.what, [int(indices[j]) for j in error.samples]) from None

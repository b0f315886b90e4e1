"""What per-sample gradients can't be computed of: samples that interact, numbers that are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class InteractionError(ValueError):
    """A sample's output or gradient depends on the other samples in the batch."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            "Expected samples that don't interact, but the module's output for a sample depends on the other samples "
            f"in the batch ({detail}); per-sample gradients are not defined then."
        )


class NonFiniteError(ValueError):
    """Outputs, losses or gradients are infinite or undefined: the network has diverged, or an input is no number.

    Attributes:
        what: What isn't finite.
        samples: Whose, as far as known.
    """

    def __init__(self, what: str, samples: Sequence[int] = ()) -> None:
        shown = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
        super().__init__(
            f"Expected finite {what}, but {f'those of sample(s) {shown}' if shown else 'they'} are infinite or "
            "undefined: has the network diverged, or does an input hold nan?"
        )
        self.what, self.samples = what, list(samples)


def require_finite(values: Tensor, what: str) -> None:
    """Refuse infinities and nan in ``[N, …]`` values, samples in dimension 0; costs a host synchronisation.

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


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

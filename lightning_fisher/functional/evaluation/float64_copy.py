"""A copy of a module in float64, whatever it keeps between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from lightning_fisher.functional.evaluation.module_copy import copied

_Module = TypeVar("_Module", bound=nn.Module)


def float64_copy(module: _Module) -> _Module:
    """A copy of ``module`` with its parameters and buffers in float64.

    Raises:
        ValueError: If the module can't be copied, in the words of what fails.
    """
    try:
        return copied(module).double()
    except Exception as error:
        raise ValueError(
            f"Expected a module that can be copied (to float64), but got {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}"
        ) from error


@contextmanager
def requires_float64() -> Iterator[None]:
    """Say what is missing where a forward pass fails because the module fixes a narrower type.

    Raises:
        ValueError: In place of torch's error about types that don't match.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign in text for sign in ("dtype", "scalar type", "Double")):
            raise
        raise ValueError(
            "Expected a module that runs in float64, but its forward pass mixes types there, as it does where it casts "
            f"to a narrower one by itself: {text.splitlines()[0]}"
        ) from error

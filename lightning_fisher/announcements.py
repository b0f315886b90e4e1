"""Lines for whoever watches a training: never a reason for it to end."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

IN_ASCII = str.maketrans({"α": "alpha", "β": "beta", "ρ": "rho", "η": "eta", "γ": "gamma", "λ": "lambda", "−": "-"})


class Prints(Protocol):
    """What prints a line, on the first process only: a `LightningModule`."""

    def print(self, *args: object) -> None:
        """Print."""


def announce(module: Prints, text: str) -> None:
    """Print a line; in ASCII where the terminal lacks a letter, not at all where nothing can be written.

    Args:
        module: Whose trainer prints it.
        text: The line.
    """
    with suppress(OSError, ValueError):  # a closed pipe, a full disk; ValueError: a closed file, and the ASCII one
        try:
            module.print(text)
        except UnicodeEncodeError:
            module.print(text.translate(IN_ASCII).encode("ascii", "replace").decode())

"""The errors of this package: every one that is ours derives from `LightningFisherError`."""

from __future__ import annotations

from collections.abc import Sequence


class LightningFisherError(Exception):
    """Base class of every error that this package defines."""


class InteractionError(LightningFisherError, ValueError):
    """A sample's output or gradient depends on the other samples in the batch."""

    def __init__(self, detail: str, *, gradient: bool = False) -> None:
        what = "gradient, though not its output," if gradient else "output"
        super().__init__(
            f"Expected samples that don't interact, but the module's {what} for a sample depends on the other samples "
            f"in the batch ({detail}); per-sample gradients are not defined then."
        )


class NonlinearBackwardError(LightningFisherError, ValueError):
    """A backward pass that is no derivative: it depends on the size of the gradient that enters it."""

    def __init__(self) -> None:
        super().__init__(
            "Expected a backward pass that is linear in the gradient of the output, but twice that gradient doesn't "
            "give twice the gradient of a sample: does the module clip or normalize gradients?"
        )


class NonFiniteError(LightningFisherError, ValueError):
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


class SecondDerivativeError(LightningFisherError, ValueError):
    """An operation of the module can be differentiated once only."""

    def __init__(self, what: str, found: str, remedy: str = "") -> None:
        super().__init__(
            f"Expected a module that can be differentiated twice to compute {what}, but {found}"
            f"{'; ' if remedy else '.'}{remedy}{'.' if remedy else ''}"
        )


class UndefinedMeasureError(LightningFisherError, ValueError):
    """A measure is not defined for a network: a path norm without ReLU, a last linear layer that doesn't exist."""

    def __init__(self, measure: str, got: str) -> None:
        super().__init__(f"Expected a network for which the {measure} is defined, but got {got}.")


class ConfigError(LightningFisherError):
    """A mistake of the user's: shown as its one-line message, without a traceback."""


class RunError(LightningFisherError):
    """A run that cannot go on, for no mistake in its command: shown as its one-line message too."""


class NoGradientError(LightningFisherError, ValueError):
    """A loss of which no trainable parameter gets a gradient."""

    def __init__(self) -> None:
        super().__init__(
            "Expected a loss that depends on the trainable parameters, but none of them gets a gradient "
            "(activation checkpointing needs `use_reentrant=False`)."
        )


class ReducedPrecisionError(LightningFisherError, ValueError):
    """A module that computes in half precision, by itself, what its gradients pass through."""

    def __init__(self, dtype: object) -> None:
        super().__init__(
            f"Expected a forward pass in float32 or float64, but the module enters autocast, or casts to {dtype}, by "
            "itself between its trainable parameters and the loss, where a finite difference is noise; leave mixed "
            "precision to the caller (in Lightning: the Trainer's `precision`), and keep what gradients pass through "
            "in float32."
        )


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    try:
        said = str(error).strip()
    except Exception:  # of an error whose own text fails
        said = ""
    return (said or type(error).__name__).splitlines()[0].rstrip(".")


_ACTING = ["FisherRegularizer"]


def acting() -> str:
    """The callback whose extra passes are under way, for messages about them."""
    return _ACTING[0]


def acts(name: str) -> None:
    """From now on messages are about this callback."""
    _ACTING[0] = name

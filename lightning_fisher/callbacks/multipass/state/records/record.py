"""What every record of something that a `training_step` may change can do: put it back."""

from __future__ import annotations

MISSING = object()


class Record:
    """Something as it was."""

    def restore(self) -> bool:
        """Put it back; whether it had changed."""
        raise NotImplementedError

    def restore_numbers(self) -> None:
        """Put back what counts once a step, where the passes of training are several: numbers and moving averages."""

    def renewed(self) -> Record | None:
        """A record of now: this one if nothing has changed; ``None`` if what is held may be other things by now."""
        raise NotImplementedError

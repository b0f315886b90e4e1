"""Output that never ends a training: a pipe that is closed, a disk that is full, letters that a terminal has not."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LastingStream:
    """A text stream that drops what it cannot write.

    After the first error of the file behind it (``| head``) everything goes to the null device, also what other code
    and C libraries write to the same descriptor.

    Args:
        stream: standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop it; letters that the encoding has not become question marks."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):  # ValueError: closed
            self._drop()
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop what was to be flushed."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        """Send this, and all that follows, to the null device."""
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Make standard output and standard error such streams; the old ones are put back."""
    before = sys.stdout, sys.stderr
    null: Any = open(os.devnull, "w", encoding="utf-8") if None in before else None  # noqa: SIM115
    streams: list[Any] = [LastingStream(stream or null) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
        if null is not None:
            null.close()

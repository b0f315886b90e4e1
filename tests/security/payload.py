"""A pickle that runs code when it is loaded: it makes a folder, whose absence shows that nothing ran."""

from __future__ import annotations

import os
import pickle
from pathlib import Path


class Payload:
    """What an attacker would save in place of weights."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[object, ...]:
        return os.makedirs, (self.marker, 0o777, True)


def works(marker: Path) -> bool:
    """Whether an unpickler runs it at all, so that the tests can fail."""
    pickle.loads(pickle.dumps(Payload(marker)))
    ran = marker.is_dir()
    marker.rmdir()
    return ran

"""A module that a step imports by itself."""

from __future__ import annotations

import collections

COUNTS = collections.Counter()


def bump():
    COUNTS["n"] += 1
    return COUNTS["n"]

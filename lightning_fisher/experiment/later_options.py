"""Options that came after others had run: runs made before are found again, and compared with those made since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By option: one that has been beside it from the start, and the value that says what there was before.
LATER = {"reg.scaling": ("reg.beta", "linear")}


def is_as_before(key: str, value: Any) -> bool:
    """Whether an option came later and says what there was before: runs with and without it are the same."""
    return key in LATER and LATER[key][1] == value


def before(config: Mapping[str, Any], key: str) -> Any:
    """The value of an option in a run that was made before the option; None if there never was one."""
    beside, value = LATER.get(key, (None, None))
    return value if beside in config else None

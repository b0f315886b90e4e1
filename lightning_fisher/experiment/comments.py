"""What the comments of the configs say: about a file, about an option, about a group."""

from __future__ import annotations

import re
from pathlib import Path

KEY = re.compile(r"^(?P<indent> *)(?P<item>- )?(?P<override>override )?/?(?P<key>[\w/]+):(?P<rest>.*)$")


def _comment(text: str) -> str:
    """The comment at the end of a line; a `#` inside quotes begins none."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: "x" * len(quoted.group()), text)
    place = re.search(r"(?:^|\s)#\s*(.*)$", bare)
    return text[place.start(1) :].strip() if place else ""


def about_file(path: Path) -> str:
    """The first sentence of the comment a config begins with, without the full stop; empty if it has none."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    text = " ".join(lines)
    end = re.search(r"\.(?=\s+[A-Z`]|\s*$)", text)  # not that of "Sec. 7" or "et al. 2016"
    return text[: end.start()] if end else text


def about_options(path: Path) -> dict[str, str]:
    """The comment of every key of a config by dotted name; those of the defaults list as ``defaults.GROUP``."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = KEY.match(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        indent = len(match["indent"]) + (2 if match["item"] else 0)
        parents = [parent for parent in parents if parent[0] < indent]
        parents.append((indent, match["key"]))
        comment = _comment(match["rest"])
        if comment:
            found[".".join(key for _, key in parents)] = comment
    return found

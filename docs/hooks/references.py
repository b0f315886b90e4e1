"""Griffe extension: names of public objects in docstrings become links; ``Example:`` becomes a section of code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from reference import TITLES, exports, plain

NAME = re.compile(r"(?<![`\w\[])`([A-Za-z_]\w*)`(?![`\w\]])")


class References(griffe.Extension):
    """Link ``gram_matrix`` in single backticks, and reST roles, to its place in the reference."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of the whole package, once it is loaded."""
        modules = [(module, members) for part in TITLES for module, members in exports(part).items()]
        self._rewrite(pkg, {name: f"{module}.{name}" for module, members in modules for name in members})

    def _rewrite(self, parent: griffe.Object, public: dict[str, str]) -> None:
        if parent.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", plain(parent.docstring.value), flags=re.MULTILINE)
            parent.docstring.value = NAME.sub(
                lambda m: f"[`{m[1]}`][{public[m[1]]}]" if m[1] in public and m[1] != parent.name else m[0], text
            )
        for member in parent.members.values():
            if not member.is_alias:
                self._rewrite(member, public)

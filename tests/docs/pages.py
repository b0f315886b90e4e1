"""The pages of the documentation, and the code blocks on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[Path, str]]:
    """Every command line in a bash block, without its comment."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                if command := line.split(" #")[0].strip():
                    yield page, command

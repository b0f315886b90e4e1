"""MkDocs hook: pages that the navigation doesn't name get a section of their own, by their titles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

SECTION = "In practice"
BEFORE = "Configuration"


def named(nav: Any) -> Iterator[str]:
    """The pages in a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from named(entry)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Insert the section, if there are such pages."""
    nav = config.nav or []
    known = set(named(nav))
    left = [page.name for page in sorted(Path(config.docs_dir).glob("*.md")) if page.name not in known]
    if left:
        place = next((i for i, entry in enumerate(nav) if BEFORE in entry), len(nav))
        nav.insert(place, {SECTION: left})
    return config

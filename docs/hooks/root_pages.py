"""MkDocs hook: pages made of the files beside README, their links as seen from ``docs/``."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def content(name: str) -> str:
    """A file's Markdown; links to pages of the documentation lose the folder, other relative ones become code."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\((?!https?://|#|[\w-]+\.md|[\w-]+/[\w.-]+\.(?:md|ipynb))([^)]+)\)", r"\1 (`\2`)", text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Rebuild when one of the files changes."""
    config.watch += [str(ROOT / name) for name in PAGES.values()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, name in PAGES.items():
        files.append(File.generated(config, path, content=content(name)))
    return files

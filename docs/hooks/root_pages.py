"""MkDocs hook: pages made of the files beside README, and links to what the site has another page for.

The pages of ``docs/`` are read on a forge too, so they link to files that a clone has (``../CHANGELOG.md``,
``../conf/``, a notebook); on the site these links lead to the pages made of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINKS = (  # of a written page: what a clone has, and the page of the site
    (r"\]\(\.\./CHANGELOG\.md", "](changelog.md"),
    (r"\]\(\.\./CONTRIBUTING\.md", "](contributing.md"),
    (r"\]\(\.\./conf/(\w+)/\)", r"](configuration/\1.md)"),
    (r"\]\(\.\./conf/\)", "](configuration/index.md)"),
    (r"\]\((tutorials/\w+)\.ipynb", r"](\1.md"),
)


def content(name: str) -> str:
    """A file's Markdown; links to pages of the documentation lose the folder, other relative ones become code."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\((?!https?://|#|[\w-]+\.md|[\w-]+/[\w.-]+\.(?:md|ipynb))([^)]+)\)", r"\1 (`\2`)", text)


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Turn links to files of the repository into links to their pages."""
    if page.file.src_uri.startswith("tutorials/"):  # a notebook's page links to the notebook itself
        return markdown
    for pattern, place in LINKS:
        markdown = re.sub(pattern, place, markdown)
    return markdown


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Rebuild when one of the files changes."""
    config.watch += [str(ROOT / name) for name in PAGES.values()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, name in PAGES.items():
        files.append(File.generated(config, path, content=content(name)))
    return files

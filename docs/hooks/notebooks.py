"""MkDocs hook: a page for every notebook under ``docs/tutorials/``, with the outputs it was committed with.

nbconvert's page would load MathJax and RequireJS from the network, which no page here does.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parents[1]


def pages(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook and the figures on it, by their paths in the site."""
    place = path.relative_to(DOCS).with_suffix("").as_posix()
    written: dict[str, str | bytes] = {}
    parts: list[str] = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            found: dict[str, Any] = output.get("data", {})
            if "image/png" in found:
                figure = f"{place}-{number}.png"
                written[figure] = base64.b64decode("".join(found["image/png"]))
                parts.append(f"![figure of the cell above]({Path(figure).name})")
            elif text := "".join(output.get("text", found.get("text/plain", ""))).strip("\n"):
                parts.append(f"```text\n{text}\n```")
    parts.append(f"[This page as a notebook]({path.name})")
    return {f"{place}.md": "\n\n".join(parts) + "\n", **written}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Rebuild when a notebook changes."""
    config.watch.append(str(DOCS / "tutorials"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and their figures."""
    for path in sorted((DOCS / "tutorials").glob("*.ipynb")):
        for place, content in pages(path).items():
            files.append(File.generated(config, place, content=content))
    return files

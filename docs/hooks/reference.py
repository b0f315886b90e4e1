"""MkDocs hook: a page of reference for every public package, from what its ``__init__`` exports."""

from __future__ import annotations

import ast
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PACKAGE = "lightning_fisher"
ROLE = re.compile(r":(?:func|class|mod|meth|attr):`~?([\w.]+)`")
# What readers look for first; the other modules follow in the order of the imports.
FIRST = (
    "fisher_regularizer",
    "fisher_monitor",
    "fisher",
    "collection",
    "matrix",
    "log_determinant",
    "loop",
    "regularized",
)
TITLES = {
    "callbacks": "Callbacks",
    "metrics": "Metrics",
    "functional": "Functions",
    "functional.measures": "Measures",
    "optimizers": "Optimizers",
    "layers": "Layers",
    "models": "Networks",
}


def plain(docstring: str) -> str:
    """A docstring with reST roles replaced by the names in them."""
    return ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", docstring)


def exports(part: str) -> dict[str, list[str]]:
    """The public names of a sub-package by the module that defines them."""
    tree = ast.parse(ROOT.joinpath(PACKAGE, *part.split("."), "__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        {ast.literal_eval(item) for item in node.value.elts}
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__all__"
        and isinstance(node.value, ast.List)
    )
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):  # those under `if TYPE_CHECKING:` too
        if isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module, []).extend(
                alias.name for alias in node.names if alias.name in names and not alias.name.isupper()
            )
    names_of = {module.rpartition(".")[2]: module for module in found}
    order = [names_of[name] for name in FIRST if name in names_of]
    return {module: found[module] for module in dict.fromkeys([*order, *found]) if found[module]}


def summary(module: str) -> str:
    """The first line of a module's docstring."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return plain(docstring.splitlines()[0].rstrip(".")) if docstring else ""


def page(part: str) -> str:
    """The Markdown of a page; mkdocstrings fills it from the docstrings."""
    lines = [f"# {TITLES[part]}", f"`{PACKAGE}.{part}`: {summary(f'{PACKAGE}.{part}')}."]
    for module, members in exports(part).items():
        level = 2 if len(members) == 1 else 3
        if level == 3:
            lines.append(f"## {summary(module)}")
        lines += [f"::: {module}.{name}\n    options: {{heading_level: {level}}}" for name in members]
    return "\n\n".join(lines) + "\n"


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Link public names in single backticks on the written pages; not in headings, code blocks and links."""
    if page.file.src_uri.startswith(("api/", "configuration/")):
        return markdown
    places = {
        name: f"{module}.{name}" for part in TITLES for module, members in exports(part).items() for name in members
    }
    written = re.compile(rf"(?<![`\w\[])`((?:functional\.|metrics\.)?({'|'.join(places)}))`(?![`\w\]])")
    parts = re.split(r"(^```.*?^```|^#.*?$)", markdown, flags=re.DOTALL | re.MULTILINE)
    linked = [written.sub(lambda found: f"[`{found[1]}`][{places[found[2]]}]", part) for part in parts[::2]]
    return "".join(text for pair in zip_longest(linked, parts[1::2], fillvalue="") for text in pair)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Rebuild when a docstring changes."""
    config.watch.append(str(ROOT / PACKAGE))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for part in TITLES:
        files.append(File.generated(config, f"api/{part}.md", content=page(part)))
    return files

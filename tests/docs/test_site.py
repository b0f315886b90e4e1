"""The pages that hooks make: reference, notebooks, files beside README, figures that link to themselves."""

from __future__ import annotations

import base64
import importlib
import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT

pytest.importorskip("mkdocs", reason="needs the docs extra")
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
HOOKS = ("reference", "notebooks", "root_pages", "images", "tables")


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(DOCS / "hooks"))
    yield {name: importlib.import_module(name) for name in HOOKS}
    for name in HOOKS:
        sys.modules.pop(name)


def test_every_public_name_is_on_one_page_of_the_reference(hooks: dict[str, ModuleType]) -> None:
    reference = hooks["reference"]
    written = "\n".join(reference.pages().values())
    documented = re.findall(r"^::: ([\w.]+)", written, re.MULTILINE)
    assert len(documented) == len(set(documented))
    found = {name.rpartition(".")[2] for name in documented}
    for part in reference.TITLES:
        names = importlib.import_module(f"lightning_fisher.{part}").__all__
        assert {name for name in names if not name.isupper()} <= found


def test_the_navigation_names_every_page_of_the_reference(hooks: dict[str, ModuleType]) -> None:
    named = set(re.findall(r"api/[\w.]+\.md", str(hooks["reference"].navigation())))
    assert named == set(hooks["reference"].pages())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_its_outputs(path, hooks: dict[str, ModuleType]) -> None:
    written = hooks["notebooks"].pages(path)
    (page,) = (text for name, text in written.items() if name.endswith(".md"))
    figures = [content for name, content in written.items() if name.endswith(".png")]
    images = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert "".join(cell["source"]) in page
        for output in cell.get("outputs", []):
            assert "".join(output.get("text", "")).strip("\n") in page
            if image := output.get("data", {}).get("image/png"):
                images += 1
                assert base64.b64decode("".join(image)) in figures
    assert len(figures) == images > 0


def test_links_of_the_files_beside_readme_lead_to_pages(hooks: dict[str, ModuleType]) -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in PAGES} | set(hooks["root_pages"].PAGES)
    for name in hooks["root_pages"].PAGES.values():
        links = re.findall(r"\]\((?!https?:)([^)#]+)", hooks["root_pages"].content(name))
        assert set(links) <= pages
        assert "](docs/" not in hooks["root_pages"].content(name)


def test_a_figure_links_to_itself_once(hooks: dict[str, ModuleType]) -> None:
    wrap = hooks["images"].on_page_content
    plain = '<p><img alt="a figure" src="../images/a.png" /></p>'
    linked = '<p><a class="figure" href="../images/a.png"><img alt="a figure" src="../images/a.png" /></a></p>'
    assert wrap(plain) == linked
    assert wrap(linked) == linked


def test_bars_of_code_in_tables_lose_their_backslash(hooks: dict[str, ModuleType]) -> None:
    change = hooks["tables"].on_page_content
    assert change(r"<td><code>ln\|x\|</code> a\|b</td>") == r"<td><code>ln|x|</code> a\|b</td>"
    assert change(r"<p><code>a\|b</code></p>") == r"<p><code>a\|b</code></p>"


def test_the_gallery_has_every_figure() -> None:
    """With the command that makes it above."""
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(images/([\w.]+)\)", text))
    assert shown == {path.name for path in (DOCS / "images").iterdir()}
    used = {
        name for path in [*PAGES, ROOT / "README.md"] for name in re.findall(r"images/([\w]+\.png)", path.read_text())
    }
    assert used == shown
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert "python " in section or "results/" in section, section.splitlines()[0]


def test_no_paragraph_of_a_docstring_becomes_a_box() -> None:
    """``Cost: …`` with an indented next line does: it is read as the title and the text of an admonition."""
    known = {"Args", "Returns", "Raises", "Yields", "Attributes", "Example", "Examples"}
    for path in sorted((ROOT / "lightning_fisher").rglob("*.py")):
        for docstring in re.findall(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL):
            for name in re.findall(r"\n\n(?P<at> +)(\w+): \S[^\n]*\n(?P=at) {4}\S", docstring):
                assert name[1] in known, f"{path.relative_to(ROOT)}: {name[1]}"


def test_no_table_of_a_docstring_is_drawn_with_equals_signs() -> None:
    """The pages are Markdown: there it becomes a paragraph of equals signs."""
    package = sorted((ROOT / "lightning_fisher").rglob("*.py"))
    assert len(package) > 100
    assert [path for path in package if re.search(r"^ *={4,} +={4,}", path.read_text("utf-8"), re.MULTILINE)] == []

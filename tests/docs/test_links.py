"""Links of what a reader of a clone sees lead to files of the clone; on the site, to its pages."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT

BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md", "results/README.md")
READ = [*(ROOT / name for name in BESIDE if (ROOT / name).is_file()), *PAGES]
OF_THE_HOST = ("../../actions/",)  # the badge of CI is a page of the forge
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def links(text: str) -> Iterator[tuple[str, str]]:
    """Place and anchor of every relative link."""
    for place, anchor in LINK.findall(CODE.sub("", text)):
        if "://" not in place and not place.startswith(OF_THE_HOST):
            yield place, anchor.removeprefix("#")


def anchors(path: Path) -> set[str]:
    """Of the headings of a file, as forges make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", READ, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_link_is_dead_in_a_clone(path: Path) -> None:
    for place, anchor in links(path.read_text(encoding="utf-8")):
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), place
        assert ROOT in (target, *target.parents), place
        if anchor:
            assert anchor in anchors(target), f"{place}#{anchor}"


def test_a_dead_link_is_found_out(tmp_path: Path) -> None:
    assert list(links("[a](gone.md#b), `[c](d.md)`, [e](https://f.g/h)")) == [("gone.md", "b")]
    (tmp_path / "page.md").write_text("# One page, of two\n\n```\n# not one\n```\n")
    assert anchors(tmp_path / "page.md") == {"one-page-of-two"}


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_a_written_page_holds_nothing_that_only_the_site_can_show(path: Path) -> None:
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    assert not re.search(r"^:::|\]\[[\w.]+\]", text, re.MULTILINE)


def test_links_to_files_of_the_repository_lead_to_their_pages_on_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    monkeypatch.syspath_prepend(str(DOCS / "hooks"))
    hooks: dict[str, ModuleType] = {name: importlib.import_module(name) for name in ("root_pages", "configuration")}
    made = {*hooks["root_pages"].PAGES, *hooks["configuration"].pages()}
    made |= {path.relative_to(DOCS).with_suffix(".md").as_posix() for path in DOCS.glob("tutorials/*.ipynb")}
    seen = set()
    for path in sorted(DOCS.glob("*.md")):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=path.name))
        for place, _ in links(hooks["root_pages"].on_page_markdown(path.read_text(encoding="utf-8"), page)):
            if place and not (DOCS / place).is_file():
                assert place in made, f"{path.name}: {place}"
                seen.add(place)
    assert {"changelog.md", "contributing.md", "configuration/index.md", "tutorials/wrong_labels.md"} <= seen

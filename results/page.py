"""The numbers of the pages of results, computed from the rows.

``python results/page.py`` writes ``docs/results.md`` and the pages beside it from Jinja templates, ``results/*.md.j2``,
whose numbers are calls of what is in ``studies.py``; ``results/README.md`` and README's table of measured claims
likewise. A test fails where one of them isn't what the rows give.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from studies import RESULTS, best_epochs, history, study

ROOT = RESULTS.parent
DOCS = ROOT / "docs"
PAGES = {  # templates and the pages that they fill
    RESULTS / f"{template}.md.j2": DOCS / f"{page}.md"
    for template, page in {
        "results": "results",
        "random_labels": "results-random-labels",
        "scenarios": "results-scenarios",
        "batch_augmentation": "results-batch-augmentation",
        "wrong_labels": "results-wrong-labels",
        "gamma": "results-gamma",
        "steps": "results-steps",
        "differences": "results-differences",
        "machines": "results-machines",
        "methods": "methods-compared",
        "zoo": "zoo-results",
    }.items()
}
TABLE, README = RESULTS / "readme.md.j2", ROOT / "README.md"
FOLDERS, INDEX = RESULTS / "folders.md.j2", RESULTS / "README.md"
MARKS = ("<!-- measured: python results/page.py -->\n", "<!-- end of measured -->")  # around what is measured in README
NEXT = "<!-- next block -->\n"  # in the template, between two such places


def render(template: str) -> str:
    """Fill a template in."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    names: dict[str, Callable[..., Any]] = {"study": study, "history": history, "best_epochs": best_epochs}
    return environment.from_string(template).render(names)


def page(template: Path) -> str:
    """A page of ``docs/`` as it should be."""
    return render(template.read_text(encoding="utf-8"))


def index() -> str:
    """``results/README.md`` as it should be."""
    return render(FOLDERS.read_text(encoding="utf-8"))


def readme() -> str:
    """README with its measured blocks as they should be."""
    written, *rest = README.read_text(encoding="utf-8").split(MARKS[0])
    blocks = render(TABLE.read_text(encoding="utf-8")).split(NEXT)
    for block, part in zip(blocks, rest, strict=True):
        written += f"{MARKS[0]}{block.lstrip()}{MARKS[1]}{part.partition(MARKS[1])[2]}"
    return written


def typed_numbers(template: str) -> list[str]:
    """The numbers with a decimal point, or behind ±, that a template states without computing them."""
    prose = re.sub(r"{[{%#].*?[}%#]}|`[^`]*`|!\[[^\]]*\]\([^)]*\)", "", template, flags=re.DOTALL)
    return re.findall(r"[−-]?\d+\.\d+|± ?\d+", prose)


if __name__ == "__main__":
    for source, target in PAGES.items():
        target.write_text(page(source), encoding="utf-8")
    INDEX.write_text(index(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")

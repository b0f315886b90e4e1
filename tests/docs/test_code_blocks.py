"""Every Python block of the documentation runs as it stands, each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, blocks

TINY_ZOO = Path(__file__).parents[1] / "data" / "zoo_tiny"  # eight networks of the study, small ones
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(DOCS)}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "python"))
]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_fisher.data import SOURCES

    monkeypatch.chdir(tmp_path)
    block = block.replace('"multirun/zoo-digits"', repr(str(TINY_ZOO)))
    monkeypatch.setattr("lightning_fisher.data.SOURCES", dict(SOURCES))  # a block may add to it
    exec(compile(block, "docs", "exec"), {"__name__": "block"})

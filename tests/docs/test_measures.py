"""The table of the measures is what the measures declare."""

from __future__ import annotations

import re

import pytest

from lightning_fisher.functional.measures import MEASURES, Measure
from lightning_fisher.functional.measures.registry import GROUPS, groups_of
from tests.docs.pages import DOCS

PAGE = (DOCS / "measures.md").read_text(encoding="utf-8")
DIRECTIONS = {True: "higher", False: "lower", None: "open"}
RESCALINGS = ("layers", "units", "batch_norm", "logits")


def row(measure: Measure) -> str:
    """A measure as a row of the table."""
    unchanged = ", ".join(kind.replace("_", "-") for kind in RESCALINGS if kind in measure.invariances) or "nothing"
    cells = [
        f"`{measure.name}`{' ★' * measure.recommended}",
        f"`{measure.formula}`".replace("|", "\\|"),
        measure.source,
        DIRECTIONS[measure.higher_is_better],
        unchanged,
        measure.cost,
        measure.fails,
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_its_row(name: str) -> None:
    assert row(MEASURES[name]) in PAGE.splitlines()


def test_no_other_row() -> None:
    rows = [line for line in PAGE.splitlines() if len(re.split(r"(?<!\\)\|", line)) == 9]
    assert [line.split("`")[1] for line in rows if line.startswith("| `")] == list(MEASURES)


def test_groups_are_named() -> None:
    for group in GROUPS:
        assert f"`{group}`" in PAGE or f'`"{group}"`' in PAGE
    paper = [measure.name for measure in MEASURES.values() if "paper" in groups_of(measure)]
    assert all(f"`{name}`" in PAGE for name in paper)

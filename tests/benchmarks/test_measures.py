"""The benchmark of the forms and the suite: every form and every measure is there, and the tables add up."""

from __future__ import annotations

import pytest
import torch

from benchmarks import tables
from benchmarks.measures import PAPER, form_times, suite_times
from benchmarks.networks import QUICK
from lightning_fisher.functional.measures import MEASURES

CPU = torch.device("cpu")


def test_every_form_is_timed():
    rows = form_times(QUICK["resnet20"], samples=6, rounds=2, device=CPU)
    assert [row["contender"] for row in rows] == [
        PAPER,
        *(f"at equal outputs, {scale}" for scale in ("none", "layer", "filter", "element")),
        "layer by layer",
    ]
    assert rows[0]["ratio"] == 1.0
    assert all(row["ratio"] > 0 for row in rows)


def test_every_measure_is_timed_and_the_sums_are_sums():
    rows = suite_times(QUICK["resnet20"], samples=10, subsets=1, device=CPU, say=lambda line: None)
    assert {row["measure"] for row in rows} == set(MEASURES)
    text = "\n".join(tables._TABLES["measures"]({"suite": rows}))
    total = sum(row["seconds"] for row in rows)
    assert f"| all, together | {total:.2f} | {10 * total:.1f} |" in text
    paper = sum(row["seconds"] for row in rows if MEASURES[row["measure"]].paper)
    assert f"| the paper's four, together | {paper:.2f} |" in text


@pytest.mark.parametrize("section", ["forms", "measures"])
def test_the_sections_have_tables(section):
    assert section in tables._TABLES

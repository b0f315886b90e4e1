"""The rows under results/ stay those of their configs, and their reports keep their numbers, whatever is moved."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME, ROOT
from lightning_fisher.experiment.config.config_hash import config_hash
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.report import write_report

RESULTS = ROOT / "results"
# The rows whose overrides, composed with the configs as they are now, give the hash the rows were recorded with. Of the
# others an option was changed since (a study's number of epochs, say), came later without a value for before, or was
# the path of an archive, whose content is hashed instead.
COMPOSE = json.loads((Path(__file__).parents[1] / "data" / "rows_that_compose.json").read_text())
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no results")


def test_there_are_rows() -> None:
    assert sum(map(len, COMPOSE.values())) == 44


@pytest.mark.parametrize("study", COMPOSE)
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_hashes_are_those_of_the_rows(study: str, every: int) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        for run in COMPOSE[study][::every]:
            row = json.loads((RESULTS / study / run / "result.json").read_text())
            assert config_hash(compose(CONFIG_NAME, overrides=row["overrides"])) == row["config_hash"], run


def numbers(report: str) -> list[list[str]]:
    """The numbers of every line of a table."""
    lines = [line for line in report.splitlines() if line.startswith("|")]
    return [[f"{float(number):g}" for number in NUMBER.findall(line)] for line in lines]


@pytest.mark.parametrize("study", ["scenario_confusion-cifar_small", "select_beta-digits", "table2-digits"])
def test_reports_have_the_numbers_of_the_committed_ones(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by the code of their time, before some of the tables came; the figures are not compared."""
    for name in ("plot_scenario", "plot_ranking", "plot_lines", "plot_groups", "plot_pairs"):
        monkeypatch.setattr(write_report, name, lambda *given, **options: tmp_path / "figure.png")
    write_report.report(RESULTS / study, out=tmp_path)
    now = numbers((tmp_path / "report.md").read_text())
    then = numbers((RESULTS / study / "report.md").read_text())
    assert sum(map(len, then)) > 40
    assert [line for line in then if line not in now] == []

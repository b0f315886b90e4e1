"""The table of the comparison: means, paired differences by seed, evaluations and times by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lightning_fisher.experiment.report.comparison import figure
from lightning_fisher.experiment.report.comparison.table import methods_table
from lightning_fisher.experiment.report.write_report import report
from tests.experiment.report.test_tables import cells
from tests.experiment.synthetic import row, write

ERRORS = {"none": [10.0, 11.0, 15.0], "sam": [9.0, 10.5, 12.0]}


def made(method: str, kind: str, number: int, noise: float = 0.4, **values: Any) -> dict[str, Any]:
    config = {
        "comparison.name": method,
        "comparison.job": f"{kind}{number}",
        "comparison.cost": 2 if method == "sam" else 1,
        "comparison.budget": 2,
        "comparison.parameter": "reg.rho" if method == "sam" else None,
        "reg.rho": 0.1 * (number + 1) if kind == "choose" else 0.2,
        "data.label_noise": noise,
    }
    return row(reg=method, seed=number, gamma=-5.0, **values, **config)


def runs() -> list[dict[str, Any]]:
    rows = []
    for method, errors in ERRORS.items():
        seconds = 2.0 if method == "none" else 5.0
        for number, error in enumerate(errors):
            options = {"test_error": error, "epochs": 20, "seconds_per_epoch": seconds, "test_calibration_error": 3.0}
            rows.append(made(method, "epochs", number, **options))
            rows.append(made(method, "choose", number, val_error=error + 20))
    return rows[::-1]


def test_by_hand() -> None:
    lines = {line[0]: line for line in cells(methods_table(runs())) if len(line) > 5}
    plain, sam = lines["no regularizer"], lines["SAM"]
    assert plain[1:6] == ["–", "3", "12.00 ± 2.65", "–", "20"]
    differences = [a - b for a, b in zip(ERRORS["sam"], ERRORS["none"], strict=True)]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(differences) / 3**0.5
    mean = statistics.fmean(differences)
    assert sam[1:3] == ["rho 0.2", "3"]
    assert sam[4] == f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
    assert sam[5:7] == ["40", "2.50"]
    assert sam[7].startswith("-5.0")
    assert sam[-1] == "3.00 ± 0.00"


def test_a_method_that_costs_the_budget_trains_once_for_both_comparisons() -> None:
    longer = [made("none", "evaluations", number, test_error=8.0, epochs=40) for number in range(3)]
    tables = methods_table(runs() + longer).split("equal gradient evaluations")
    lines = {line[0]: line for line in cells(tables[1]) if len(line) > 5}
    assert lines["no regularizer"][3] == "8.00 ± 0.00"
    assert lines["SAM"][2:4] == ["3", "10.50 ± 1.50"]
    own = [made("sam", "evaluations", 0, test_error=1.0, epochs=20)]
    tables = methods_table(runs() + longer + own).split("equal gradient evaluations")
    assert {line[0]: line for line in cells(tables[1]) if len(line) > 5}["SAM"][2:4] == ["1", "1.00"]


def test_the_values_tried() -> None:
    text = methods_table(runs())
    assert "40 % of the labels wrong, validation error (%) of the values tried" in text
    assert "0.1: 29.00; 0.2: 30.50; 0.3: 32.00" in text


def test_pairs_are_of_one_seed() -> None:
    """A plain run that is missing leaves its seed out."""
    rows = [
        one for one in runs() if not (one["config"]["comparison.job"] == "epochs2" and one["choices"]["reg"] == "none")
    ]
    sam = next(line for line in cells(methods_table(rows)) if line[0] == "SAM" and len(line) > 5)
    assert sam[4].startswith("-0.75")


def test_report_and_figure(tmp_path: Path) -> None:
    write(tmp_path, runs() + [{**one, "config": {**one["config"], "data.label_noise": 0.0}} for one in runs()])
    found = report(tmp_path, kind="methods")
    assert [path.name for path in found.figures] == ["methods.png"]
    assert "Clean labels, equal epochs" in (tmp_path / "report.md").read_text()


def test_a_figure_counts_runs_of_both_comparisons_once_in_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []
    monkeypatch.setattr(figure.style, "legend", lambda *given: words.append(given[-1]))
    longer = [made("none", "evaluations", number, test_error=8.0, epochs=40) for number in range(3)]
    figure.plot_methods(runs() + longer, tmp_path / "methods.png")
    assert words == ["Dots: networks; bars: mean and standard deviation of 3 each"]

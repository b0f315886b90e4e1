from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lightning_fisher.experiment.report.rank_table import all_correlations, correlations, ranking_table
from lightning_fisher.experiment.report.rows import grouped
from lightning_fisher.experiment.report.write_report import main, report
from tests.experiment.synthetic import confusion, row, write

PNG = b"\x89PNG"


def test_scenario_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, confusion())
    made = report(tmp_path, x="data.confusion_size")
    assert [path.name for path in made.figures] == ["metrics.png", "ranking.png"]
    assert all(path.read_bytes().startswith(PNG) for path in made.figures)
    text = (tmp_path / "report.md").read_text()
    for expected in ("9 runs", "![metrics](metrics.png)", "1.00 [1.00, 1.00]", "-1.00 [-1.00, -1.00]", "0123456789"):
        assert expected in text
    assert "| γ̂ " in capsys.readouterr().out


def test_correlations_are_scipys() -> None:
    rows = [row(gamma=g, test_error=e) for g, e in ((1, 3), (2, 1), (3, 4), (4, 4), (5, 9), (6, 2))]
    tau, rho = correlations(rows, "gamma")
    gammas, errors = [1, 2, 3, 4, 5, 6], [3, 1, 4, 4, 9, 2]
    assert tau.statistic == pytest.approx(stats.kendalltau(gammas, errors).statistic)
    assert rho.statistic == pytest.approx(stats.spearmanr(gammas, errors).statistic)
    assert tau.low <= tau.statistic <= tau.high
    assert tau.n == 6


def test_correlations_need_three_runs_with_both_values() -> None:
    assert correlations([row(), row(gamma=1.0), row(gamma=None)], "gamma") == []


@pytest.mark.parametrize(
    ("kind", "figures"),
    [("table1", ["test_error.png"]), ("table2", ["test_error.png"]), ("table3", ["gamma.png"]), ("step_cost", [])],
)
def test_table_reports(kind: str, figures: list[str], tmp_path: Path) -> None:
    rows = [row(reg=reg, seed=seed, step_ms_plain=1.0) for reg in ("none", "fisher") for seed in (0, 1)]
    write(tmp_path, rows)
    assert [path.name for path in report(tmp_path, kind=kind).figures] == figures


def test_select_beta_report(tmp_path: Path) -> None:
    write(tmp_path, [row(reg="fisher", val_error=b, **{"reg.beta": b}) for b in (1.0, 10.0, 100.0)])
    assert [path.name for path in report(tmp_path, kind="select_beta").figures] == ["beta.png"]


def test_lines_by_method(tmp_path: Path) -> None:
    rows = [row(reg=reg, **{"data.label_noise": noise}) for reg in ("none", "fisher") for noise in (0.0, 0.2)]
    study = {"name": "label_noise", "report": "groups", "x": "data.label_noise", "by": "reg"}
    write(tmp_path, [{**one, "study": study} for one in rows])
    made = report(tmp_path)
    assert made.title == "label_noise: 4 runs"
    assert [path.name for path in made.figures] == ["lines.png"]


def test_only_the_runs_of_the_sweep(tmp_path: Path) -> None:
    write(tmp_path, confusion())
    assert report(tmp_path, [tmp_path / "run00", tmp_path / "run01"]).title.endswith("2 runs")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "rows", confusion())
    main([str(tmp_path / "rows"), "--x", "data.confusion_size", "--out", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "metrics.png", "ranking.png"}
    assert "report.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "at least one complete run"),
        (["--x", "data.confusion_sise"], "Did you mean `data.confusion_size`?"),
        (["--by", "rag"], "`rag`"),
        (["--as", "table9"], "table1"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments:
        write(tmp_path, confusion())
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), *arguments])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert expected in error


def test_runs_made_before_an_option_stand_with_those_at_what_there_was_before() -> None:
    old = [row(reg="fisher", seed=s, **{"reg.beta": 1.0}) for s in range(2)]
    new = [row(reg="fisher", seed=s, **{"reg.beta": 1.0, "reg.scaling": "linear"}) for s in range(2, 4)]
    other = [row(reg="fisher", **{"reg.beta": 1.0, "reg.scaling": "sqrt"})]
    groups = grouped([*old, *new, *other, row()], ["reg.scaling"])
    assert {key: len(rows) for key, rows in groups.items()} == {("linear",): 4, ("sqrt",): 1, (None,): 1}


def test_more_options_than_two_make_a_line_a_combination(tmp_path: Path) -> None:
    study = {"name": "forms", "report": "groups", "x": "reg.beta", "by": "reg"}
    rows = [
        row(reg="fisher", seed=s, study=study, **{"reg.beta": beta, "reg.scaling": scaling, "test_error": beta + s})
        for beta in (1.0, 2.0)
        for scaling in ("linear", "sqrt")
        for s in range(2)
    ]
    write(tmp_path, rows)
    made = report(tmp_path)
    assert [path.name for path in made.figures] == ["groups.png"]
    assert made.figures[0].read_bytes().startswith(PNG)


def test_the_measures_that_order_best_stand_first(tmp_path: Path) -> None:
    errors = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    values = {"gamma": (6, 5, 4, 3, 2, 1), "path_norm": (1, 2, 3, 4, 6, 5), "output_margin": (9, 8, 7, 6, 5, 4)}
    rows = [row(test_error=e, **{k: float(v[i]) for k, v in values.items()}) for i, e in enumerate(errors)]
    table = ranking_table(all_correlations(rows)).splitlines()
    names = [line.split("|")[1].strip() for line in table if line.startswith("|")]
    ranked = [name for name in names if name in ("γ̂", "path norm", "output margin")]
    assert ranked == ["output margin", "path norm", "γ̂"]  # of which margins: larger is better


def test_ends_of_an_interval_that_there_are_not_are_dashes(tmp_path: Path) -> None:
    """Without the third seed the path norm is constant and orders nothing, so the jackknife gives no interval."""
    norms = (1.0, 1.0, 1.0, 1.0, 2.0, 3.0)
    study = {"name": "scenario", "report": "scenario", "x": "data.confusion_size"}
    rows = [row(test_error=1.0 + i, path_norm=n, seed=i // 2, study=study) for i, n in enumerate(norms)]
    (line,) = [one for one in ranking_table(all_correlations(rows)).splitlines() if "path norm" in one]
    tau = stats.kendalltau(norms, range(6)).statistic
    assert line.split("|")[2].strip() == f"{tau:.2f} [–, –]"
    write(tmp_path, rows)
    made = report(tmp_path)
    assert "nan" not in (tmp_path / "report.md").read_text()
    assert made.figures[0].read_bytes().startswith(PNG)


def test_few_combinations_of_options_are_lines_and_many_are_groups(tmp_path: Path) -> None:
    study = {"name": "differences", "report": "groups", "x": "reg.alpha", "by": "reg.difference"}

    def rows(differences: int, alphas: tuple[float, ...] = (0.01, 0.1, 1.0)) -> list[dict[str, Any]]:
        options = product(range(differences), ("fixed", "normalized"), alphas)
        named = [{"reg.difference": f"d{d}", "reg.step": step, "reg.alpha": alpha} for d, step, alpha in options]
        return [{**row(test_error=1.0, **one), "study": study} for one in named]

    for number, (made, figure) in enumerate(
        [
            (rows(3), "lines.png"),
            (rows(4), "groups.png"),
            (rows(2)[:-1], "groups.png"),
            (rows(2, (0.1, 1.0)), "groups.png"),
        ]
    ):
        write(tmp_path / str(number), made)
        assert [path.name for path in report(tmp_path / str(number)).figures] == [figure]

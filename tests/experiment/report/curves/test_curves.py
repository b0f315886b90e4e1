"""Reports of the form ``curves``: against numbers worked out by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from lightning_fisher.experiment.display import plot_style
from lightning_fisher.experiment.report.write_report import report
from tests.experiment.synthetic import row, write

NOISE = {"data.label_noise": 0.4}
STUDY = {"name": "demo", "report": "curves", "by": "reg"}


def training(folder: Path, val: list[float], train: list[float], switch: int | None) -> None:
    lines = ["epoch,regularized,val_error,train_error"]
    for epoch, (v, t) in enumerate(zip(val, train, strict=True)):
        lines.append(f"{epoch},{int(switch is not None and epoch >= switch)},{v},{t}")
    (folder / "history.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    rows = [
        row(reg=reg, seed=seed, test_error=error + seed, train_error=train, study=STUDY, **NOISE)
        for reg, error, train in (("none", 33.0, 1.0), ("fisher", 18.0, 44.0))
        for seed in (0, 1, 2)
    ]
    write(tmp_path, rows)
    for number, _ in enumerate(rows):
        regularized = number >= 3
        val = [40.0 + number, 30.0, 15.0] if regularized else [40.0 + number, 35.0, 36.0]
        training(
            tmp_path / f"run{number:02d}", val, [50.0, 20.0, 44.0 if regularized else 1.0], 1 if regularized else None
        )
    return tmp_path


def test_the_table_says_what_every_method_ends_with(demo: Path) -> None:
    made = report(demo)
    assert [path.name for path in made.figures] == ["curves.png"]
    text = (demo / "report.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines() if "regularizer " in line]
    assert ["no regularizer", "3", "34.0 ± 1.0", "99.0 ± 0.0"] in cells
    assert ["Fisher regularizer", "3", "19.0 ± 1.0", "56.0 ± 0.0"] in cells
    assert "40 % of the training labels are wrong" in text
    assert "about 60 %" in text
    assert "Paired differences" in text


def test_the_figure_draws_means_over_the_epochs(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    save = plot_style.save
    monkeypatch.setattr(plot_style, "save", lambda figure, path: drawn.append(figure) or save(figure, path))
    report(demo)
    left, right = drawn[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert lines["no regularizer"] == pytest.approx([statistics.fmean([40, 41, 42]), 35, 36])
    assert lines["Fisher regularizer"] == pytest.approx([statistics.fmean([43, 44, 45]), 30, 15])
    assert list(next(line for line in left.lines if line.get_label() == "regularizer on").get_xdata()) == [1.5, 1.5]
    fitted = {line.get_label(): list(line.get_ydata()) for line in right.lines}
    assert fitted["Fisher regularizer"] == pytest.approx([50, 80, 56])
    assert [60, 60] in [list(line.get_ydata()) for line in right.lines]
    assert "mean and standard deviation of 3 networks" in drawn[0].legends[0].get_title().get_text()


def test_one_pair_has_no_differences_and_rows_alone_no_figure(tmp_path: Path) -> None:
    write(tmp_path, [row(reg=reg, study=STUDY, **NOISE) for reg in ("none", "fisher")])
    made = report(tmp_path)
    assert made.figures == []
    assert "Paired differences" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_runs_of_different_shares_of_wrong_labels(tmp_path: Path) -> None:
    write(tmp_path, [row(reg="none", **{"data.label_noise": noise}) for noise in (0.0, 0.4)])
    report(tmp_path, kind="curves")
    assert "of the training labels are wrong" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_long_labels_name_what_differs() -> None:
    from lightning_fisher.experiment.report.method_figures import most_common, named

    keys = ["reg.beta", "reg.gradient", "reg.scaling"]
    groups = [
        (1000.0, "full", "linear"),
        (300.0, "shared", "linear"),
        (1000.0, "shared", "sqrt"),
        (1000.0, "shared", "linear"),
    ]
    usual = most_common(groups)
    assert usual == (1000.0, "shared", "linear")
    assert [named(keys, group, usual) for group in groups] == [
        "full gradient",
        "β 300",
        "scaling by the root",
        "as said below",
    ]

from __future__ import annotations

import pytest

from lightning_fisher.experiment.report.rows import grouped, numbers, order, spread, value, varied
from lightning_fisher.experiment.report.tables import (
    markdown,
    select_beta,
    step_cost,
    summary,
    table_1,
    table_2,
    table_3,
)
from tests.experiment.synthetic import confusion, row


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0, 3)
    assert spread([5.0]) == (5.0, None, 1)
    with pytest.raises(ValueError, match="at least one value"):
        spread([])


def test_values_of_metrics_choices_and_options() -> None:
    one = row(**{"data.confusion_size": 5})
    assert (value(one, "gamma"), value(one, "reg"), value(one, "data.confusion_size")) == (-1000.0, "none", 5)
    assert value(one, "nope") is None
    assert numbers([one, row(gamma=None)], "gamma") == [-1000.0]


def test_what_varies_is_found_without_the_seed() -> None:
    assert varied(confusion()) == ["data.confusion_size"]
    assert varied([row(reg="none"), row(reg="fisher")]) == ["reg"]


def test_groups_are_in_order() -> None:
    rows = [row(**{"data.confusion_size": size}) for size in (1000, 0, 200)]
    assert [key for (key,) in grouped(rows, ["data.confusion_size"])] == [0, 200, 1000]
    assert order(["b", "a", "c"], ["c", "b"]) == ["c", "b", "a"]


def test_markdown_is_aligned() -> None:
    assert markdown(["a", "long"], [["1000", "2"]]) == "| a    | long |\n| ---- | ---- |\n| 1000 | 2    |"


def test_table_1_beside_the_paper() -> None:
    rows = [row(test_error=8.0 + i, seed=i) for i in range(3)] + [row(reg="fisher", test_error=7.0)]
    lines = cells(table_1(rows))
    assert lines[2] == ["cifar10", "resnet20", "3/1", "9.00 ± 1.00", "7.00", "8.50 ± 0.31", "7.89 ± 0.13"]


def test_table_1_of_a_network_the_paper_does_not_have() -> None:
    assert cells(table_1([row(data="digits", model="resnet8")]))[2][3:] == ["8.00", "–", "–", "–"]


def test_table_2_has_the_gap_run_by_run() -> None:
    rows = [row(test_error=t, train_error=s, test_error_top5=2.0, train_error_top5=1.0) for t, s in ((10, 4), (12, 8))]
    lines = {line[0]: line[1:] for line in cells(table_2(rows))}
    assert lines["top-1 gap"] == ["2/0", "5.00 ± 1.41", "–", "11.85", "10.99"]
    assert lines["top-5 gap"][1] == "1.00 ± 0.00"
    assert lines["top-1 test"][3] == "35.52 ± 0.11"


def test_table_3() -> None:
    rows = [row(gamma=-900.0), row(reg="fisher", gamma=-1100.0)]
    assert cells(table_3(rows))[2] == ["resnet20", "1/1", "-900.0", "-1100.0", "-979.3 ± 22.3", "-1138.1 ± 11.0"]


def test_step_cost() -> None:
    rows = [row(model="wrn18_1_5", step_ms_plain=10.0), row(model="wrn18_1_5", reg="fisher", step_ms_regularized=25.0)]
    assert cells(step_cost(rows))[2][2:8] == ["10.0", "25.0", "2.50", "185.7", "285.6", "1.54"]


def test_select_beta_marks_the_least_validation_error() -> None:
    rows = [
        row(reg="fisher", val_error=error, **{"reg.beta": beta}) for beta, error in ((1.0, 5), (10.0, 3), (100.0, 4))
    ]
    assert [line[0] for line in cells(select_beta(rows))[2:]] == ["1", "10 (least)", "100"]


def test_summary_counts_and_says_why_runs_stopped() -> None:
    lines = cells(summary([*confusion(), row(**{"data.confusion_size": 0})], ["data.confusion_size"]))
    assert lines[2][0:3] == ["0", "4", "8.07 ± 0.10"]  # (8 + 8.1 + 8.2 + 8) / 4
    assert lines[2][-1] == "converged 3, max_epochs 1"

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_fisher.experiment.records.result import complete_row, find_rows, plain, read_row, write_row


def test_round_trip(tmp_path: Path) -> None:
    write_row(
        tmp_path, {"gamma": torch.tensor(-3.5, dtype=torch.float64), "bad": float("nan"), "config": {"a.b": [1, None]}}
    )
    assert read_row(tmp_path) == {"format": 1, "gamma": -3.5, "bad": None, "config": {"a.b": [1, None]}}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]  # no temporary file


def test_a_row_is_complete_only_for_its_configuration(tmp_path: Path) -> None:
    assert complete_row(tmp_path, "abc") is None
    write_row(tmp_path, {"config_hash": "abc"})
    assert complete_row(tmp_path, "abc") is not None
    assert complete_row(tmp_path, "abd") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 0}'])
def test_an_unreadable_row_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    assert read_row(tmp_path) is None


def test_rows_below_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c/d"):
        (tmp_path / name).mkdir(parents=True)
        write_row(tmp_path / name, {"name": name})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    assert [row["name"] for _, row in find_rows(tmp_path)] == ["a", "b", "c/d"]


def test_plain_is_json() -> None:
    value = {"path": Path("x"), 1: (2.0, float("inf")), "tensor": torch.tensor(2), "flag": True}
    assert json.loads(json.dumps(plain(value))) == {"path": "x", "1": [2.0, None], "tensor": 2, "flag": True}

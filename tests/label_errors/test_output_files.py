"""Files of an earlier command stay; where nothing can be written is said before the training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_fisher.label_errors.command import main
from lightning_fisher.label_errors.options import output_files

QUICK = ["--epochs", "1", "--batch-size", "16", "--accelerator", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    labels = np.arange(40) % 2
    np.savez("my.npz", images=np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8), labels=labels)
    return tmp_path


def test_earlier_files_stay(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["my.npz", *QUICK]) == 0
    before = {name: (here / name).read_bytes() for name in ("label_errors.csv", "label_errors.png")}
    capsys.readouterr()
    assert main(["my.npz", *QUICK, "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert {name: (here / name).read_bytes() for name in before} == before
    assert "Writing label_errors-2.csv and label_errors-2.png: there is label_errors.csv and label_errors.png" in said
    assert "label_errors-2.csv: all images" in said
    assert (here / "label_errors-2.csv").read_bytes() != before["label_errors.csv"]
    assert main(["my.npz", *QUICK, "--seed", "1", "--overwrite"]) == 0
    assert (here / "label_errors.csv").read_bytes() == (here / "label_errors-2.csv").read_bytes()
    assert len(list(here.iterdir())) == 5


def test_both_files_have_one_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.csv", "b-2.png"):
        (here / name).touch()
    assert output_files("a.csv", "b.png", overwrite=False) == (Path("a-3.csv"), Path("b-3.png"))
    assert output_files("a.csv", "b.png", overwrite=True) == (Path("a.csv"), Path("b.png"))
    assert output_files("b.csv", "none", overwrite=False) == (Path("b.csv"), None)


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "no/such/folder.csv"],
        ["--images", "no/picture.png"],
        ["--out", "."],
        pytest.param(["--out", "/proc/x.csv"], marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux's")),
    ],
)
def test_where_nothing_can_be_written(options: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["my.npz", *QUICK, *options]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"Error: Expected {options[0]} to be a file in a folder that can be written in, but got")
    assert said.out == ""


def test_without_a_terminal_there_are_lines(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["my.npz", *QUICK]) == 0
    said = capsys.readouterr()
    assert "\r" not in said.out + said.err
    assert "epoch 1/1: loss " in said.out

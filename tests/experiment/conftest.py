from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_fisher.experiment import main

# A run of a second: a narrow network, three epochs, the learning rate drops after the second.
QUICK = [
    "model.net.width=2",
    "model.max_epochs=3",
    "model.batch_size=200",
    "metric.num_subsets=2",
    "metric.subset_size=10",
    "metric.every_n_validations=1",
    "reg.num_sub_batches=2",
    "trainer.accelerator=cpu",
]


@dataclass
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python run.py ARGUMENTS` in an empty working folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run

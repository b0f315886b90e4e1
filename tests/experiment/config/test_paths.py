"""Paths on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_fisher.experiment.cli import with_home


@pytest.mark.parametrize(
    ("home", "given", "expected"),
    [
        ("/home/me", "data.path=~/a.npz", "data.path=/home/me/a.npz"),
        ("/home/me", "data.path=~/a.npz,~/b.npz", "data.path=/home/me/a.npz,/home/me/b.npz"),
        ("/home/me", "score.checkpoint=[~/a,~/b]", "score.checkpoint=[/home/me/a,/home/me/b]"),
        ("/home/me", "~model.optimizer.momentum", "~model.optimizer.momentum"),
        ("/home/me", "data.path=a~/b", "data.path=a~/b"),
        ("/home/me too", "data.path=~/a.npz", "data.path=~/a.npz"),
    ],
)
def test_the_home_folder(home: str, given: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    assert with_home([given]) == [expected]


def test_a_current_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code = "import os, sys; os.chdir('gone'); os.rmdir(os.getcwd()); from lightning_fisher.experiment import main\n"
    code += "sys.argv = ['run.py']; main()"
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Expected the current folder to be there")
    assert done.stderr.count("\n") == 1

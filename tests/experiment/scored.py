"""Trained runs to score, and the command line without fixtures."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest

from lightning_fisher.experiment import main
from lightning_fisher.experiment.scoring import command
from tests.experiment.conftest import QUICK, Result

BASE = [option for option in QUICK if not option.startswith("reg.")]
FIGURES = ("plot_spectrum", "plot_influential", "plot_gradients")
DATA = ["data.label_noise=0.1", "data.validation_size=0", "data.train_size=300", "data.confusion_size=20"]
NOISY = [*BASE, *DATA, "model.net.width=4"]
SCORE = ["metric.num_subsets=2", "metric.subset_size=10", "score.top=6"]  # the subsets of the training


def run_in(folder: Path, *arguments: str, figures: bool = True) -> Result:
    """`python run.py ARGUMENTS` in a folder, in this process; without the figures it is several times faster."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["run.py", *arguments])
        for name in () if figures else FIGURES:
            patch.setattr(command, name, lambda *given: given[-1])  # the path
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def train(folder: Path, name: str, *arguments: str) -> Path:
    """Train a network in less than a second and return its run folder."""
    result = run_in(folder, *NOISY, f"hydra.run.dir='{name}'", *arguments)
    assert result.code == 0, result.err
    return folder / name

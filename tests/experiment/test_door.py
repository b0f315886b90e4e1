"""What needs nothing of torch is answered before torch is imported: seconds become tenths of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_fisher.experiment.config.compose import ROOT
from lightning_fisher.experiment.sweep import jobs, kept_report
from tests.experiment.conftest import Command
from tests.experiment.synthetic import row

HEAVY = {"torch", "lightning", "torchmetrics", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "wandb"}
CALL = """
import json, sys
sys.argv = ["run.py", *sys.argv[1:]]
code = 0
try:
    from lightning_fisher.experiment import main
    main()
except SystemExit as end:
    code = end.code or 0
json.dump([code, sorted(set(sys.modules))], open("loaded.json", "w"))
"""


def given(folder: Path, *arguments: str) -> tuple[int, set[str], str]:
    """`python run.py ARGUMENTS` in a new interpreter: exit code, heavy modules it has loaded, and output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CALL, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    code, loaded = json.loads((folder / "loaded.json").read_text())
    return code, HEAVY & set(loaded), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--help"], "Groups"),
        (["--cfg", "job"], "num_sub_batches: 8"),
        (["reg.bta=3"], "Unknown option `reg.bta`. Did you mean `reg.beta`?"),
        (["regg=fisher"], "Unknown option `regg`"),
        (["reg=fishr"], "Expected option `reg` to be asam, entropy_sgd, fisher, fisher_auto"),
        (["reg.beta=much"], "Expected option `reg.beta` to be a number of at least 0, or auto, but got `much`."),
        (["metric.subset_size=1"], "Expected option `metric.subset_size` to be an integer of at least 2"),
        (["reg.beta"], "Expected overrides of the form option=value"),
        (["--no-such-flag"], "Expected flags as `--help` lists them"),
        (["data=arrays", "data.path=none.npz"], "there is no file 'none.npz'"),
        (["data=arrays", "data.path=loaded.txt"], "it is no archive"),
        (["data=cifar10", "data.download=false"], "CIFAR-10 was not found"),
        (["data=cifar100", "data.download=false"], "CIFAR-100 was not found"),
        (["data=imagenet"], "ImageNet was not found"),
        (["score.checkpoint=none.ckpt"], "there is no `none.ckpt`"),
        (["-m", "reg.beta=much"], "number of at least 0, or auto, but got `much`."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_load_nothing_heavy(arguments: list[str], answer: str, tmp_path: Path) -> None:
    (tmp_path / "loaded.txt").write_text("no archive")
    code, loaded, output = given(tmp_path, *arguments)
    assert answer in output
    assert code == (0 if arguments[0] in ("--help", "--cfg") else 1)
    assert not loaded


@pytest.fixture
def complete(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep of three jobs whose rows are complete; what it printed."""

    def finish(arguments: list[str], folder: Path, checked: str) -> int:
        (folder / "result.json").write_text(json.dumps({**row(), "config_hash": checked}))
        return 0

    monkeypatch.setattr(jobs, "_run", finish)
    result = command("-m", "seed=0,1,2")
    assert result.code == 0, result.err
    return result.out


def report(output: str) -> str:
    return output[output.index("# ") :]


def test_a_complete_sweep(complete: str, tmp_path: Path) -> None:
    """Its report is shown again as it was."""
    code, loaded, output = given(tmp_path, "-m", "seed=0,1,2")
    assert code == 0, output
    assert "3 of 3 jobs complete (3 before this command), 0 failed." in output
    assert report(output) == report(complete)
    assert not loaded


def test_a_complete_run(complete: str, tmp_path: Path) -> None:
    folder = next((tmp_path / "multirun" / "digits-resnet8").glob("seed=1-*"))
    code, loaded, output = given(tmp_path, "seed=1", f"hydra.run.dir='{folder}'")
    assert code == 0, output
    assert "Complete already; restart=true trains it again." in output
    assert not loaded


@pytest.mark.parametrize("change", ["row", "figure", "report", "kept", "code"])
def test_a_report_that_is_not_of_these_rows_is_made_again(
    change: str, complete: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "multirun" / "digits-resnet8"
    first = (folder / "report.md").read_text()
    if change == "row":
        path = next(folder.glob("seed=1-*")) / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "test_error": 99.0}))
    elif change == "figure":
        kept = json.loads((folder / kept_report.KEPT).read_text())
        (folder / kept_report.KEPT).write_text(json.dumps({**kept, "figures": ["gone.png"]}))
    elif change == "report":
        (folder / "report.md").unlink()
    elif change == "kept":
        (folder / kept_report.KEPT).write_text("{")
    else:
        monkeypatch.setattr(kept_report, "SOURCES", ("cli.py",))
    made = []
    from lightning_fisher.experiment.report import write_report

    original = write_report.report
    monkeypatch.setattr(write_report, "report", lambda *given: made.append(1) or original(*given))
    assert command("-m", "seed=0,1,2").code == 0
    assert made == [1]
    assert ((folder / "report.md").read_text() == first) == (change != "row")
    assert command("-m", "seed=0,1,2").code == 0
    assert made == [1]  # the new one is kept

"""Scoring a checkpoint end to end: what it measures is what training measured, and every file is there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_fisher.datamodule import ImageDataModule
from lightning_fisher.experiment.config.score_request import quoted_paths
from lightning_fisher.experiment.records.result import complete_row, write_row
from lightning_fisher.experiment.sweep import jobs
from tests.experiment.conftest import Command, Result
from tests.experiment.scored import SCORE, run_in, train
from tests.experiment.synthetic import row

PLAIN, FISHER = "a=plain", "reg=fisher_beta=100"  # the names have "=", as those of our own run folders do


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(folder, PLAIN, "reg=none")
    train(folder, FISHER, "reg.beta=100")
    return folder


@pytest.fixture(scope="module")
def scored(runs: Path) -> Result:
    return run_in(runs, f"score.checkpoint={PLAIN}", *SCORE, "hydra.run.dir=card")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_folder_of_a_card(scored: Result, runs: Path) -> None:
    assert scored.code == 0, scored.err
    names = {path.name for path in (runs / "card").iterdir()}
    figures = {"spectrum.png", "layers.png", "influential.png", "gradients.png"}
    assert names == {"card.md", "card.json", "result.json", "config.yaml", "overrides.yaml"} | figures
    for figure in figures:
        assert (runs / "card" / figure).stat().st_size > 10_000
    text = (runs / "card" / "card.md").read_text()
    for expected in (f"# Metric card: {PLAIN}", "γ̂ (nats)", "![influential](influential.png)", "true label"):
        assert expected in text


def test_scoring_measures_what_training_measured(scored: Result, runs: Path) -> None:
    trained, now = (read(runs / name / "result.json") for name in (PLAIN, "card"))
    for key in ("test_error", "train_error", "test_error_top5", "test_loss", "train_loss"):
        assert now[key] == pytest.approx(trained[key], rel=1e-5), key
    for key in ("gamma", "gamma_std", "gamma_magnitude", "gamma_direction", "robustness", "frobenius_norm"):
        assert now[key] == pytest.approx(trained[key], rel=1e-9), key
    assert now["epochs"] == 3
    assert now["config"]["data.label_noise"] == 0.1  # of its training
    assert now["config"]["score.checkpoint"] == PLAIN
    assert now["choices"]["reg"] == "none"


def test_the_measures_that_rank_come_first(scored: Result, runs: Path) -> None:
    """Those that pointed the right way in all three scenarios, though the config asks for no measure."""
    lines = (runs / "card" / "card.md").read_text(encoding="utf-8").splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    first = names.index("γ̂ at equal outputs")
    assert names[first : first + 3] == ["γ̂ at equal outputs", "sensitivity part by layers", "γ̂ (nats)"]
    assert not any("γ̂" in name for name in names[:first])


def test_the_card_as_numbers(scored: Result, runs: Path) -> None:
    card = read(runs / "card" / "card.json")
    assert len(card["subsets"]["gamma"]) == 2
    for logs, gamma in zip(card["log_eigenvalues"], card["subsets"]["gamma"], strict=True):
        assert len(logs) == 10
        assert sum(logs) == pytest.approx(gamma, rel=1e-6)
        assert logs == sorted(logs, reverse=True)
    for cosines, direction in zip(card["cosine_eigenvalues"], card["subsets"]["gamma_direction"], strict=True):
        assert sum(map(math.log, cosines)) == pytest.approx(direction, rel=1e-6)
        assert sum(cosines) == pytest.approx(10)
    influence = card["influence"]
    norms = [one["gradient_norm"] for one in influence["top"]]
    assert norms == sorted(norms, reverse=True)
    assert (len(norms), influence["searched"]) == (6, 320)  # the images with random labels are searched too
    data = ImageDataModule(
        "digits", num_classes=10, channels=1, image_size=8, train_size=300, confusion_size=20, label_noise=0.1
    )
    data.setup()
    truth = data.train_set.source.labels[data.train_set.indices]
    assert influence["mislabeled"] == int((data.train_set.labels != truth).sum()) > 30
    for one in influence["top"]:
        assert one["given"] == int(data.train_set.labels[one["position"]])
        assert one["true"] == int(truth[one["position"]])
    assert influence["precision"] == sum(one["given"] != one["true"] for one in influence["top"]) / 6


def test_the_same_command_shows_its_card_until_the_checkpoint_changes(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.ckpt"
    file.write_bytes((runs / PLAIN / "checkpoints" / "last.ckpt").read_bytes())
    arguments = [f"score.checkpoint={file}", "model.net.width=4", *SCORE, "score.samples=20", "hydra.run.dir=shown"]
    assert "Complete already" not in run_in(tmp_path, *arguments, figures=False).out
    again = run_in(tmp_path, *arguments)
    assert "Complete already" in again.out
    assert "γ̂ (nats)" in again.out
    file.write_bytes((runs / FISHER / "checkpoints" / "last.ckpt").read_bytes())
    changed = run_in(tmp_path, *arguments)
    assert "another configuration" in changed.err
    assert run_in(tmp_path, *arguments, "restart=true", figures=False).code == 0


def test_two_are_compared_over_the_same_subsets(runs: Path) -> None:
    options = ["metric.num_subsets=3", "score.samples=50", "hydra.run.dir=both"]
    result = run_in(runs, f"score.checkpoint=[{PLAIN},{FISHER}]", *SCORE, *options, figures=False)
    assert result.code == 0, result.err
    both = runs / "both"
    assert (both / "comparison.png").stat().st_size > 10_000
    cards = [read(both / name / "card.json") for name in (f"1-{PLAIN}", f"2-{FISHER}")]
    found = read(both / "comparison.json")["differences"]["gamma"]
    differences = [b - a for a, b in zip(*(card["subsets"]["gamma"] for card in cards), strict=True)]
    assert found["mean"] == pytest.approx(sum(differences) / 3)
    # Student's t at 2 degrees of freedom, 97.5 %: 4.302653
    mean = sum(differences) / 3
    half = 4.302653 * math.sqrt(sum((d - mean) ** 2 for d in differences) / 2 / 3)
    assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half), rel=1e-6)
    assert "They do not cover the seeds" in result.out.replace("\n", " ")
    assert read(both / f"2-{FISHER}" / "result.json")["choices"]["reg"] == "fisher"


def test_a_foreign_network_by_import_path(tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, width): super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))\n"
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Linear(7, 10))
    torch.save({"epoch": 4, "model": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "weights.pt")
    arguments = ["score.checkpoint=weights.pt", "score.module=mynet.Net", "score.kwargs={width: 7}", *SCORE]
    result = run_in(tmp_path, *arguments, "score.samples=50", "hydra.run.dir=card", figures=False)
    assert result.code == 0, result.err
    card = read(tmp_path / "card" / "card.json")
    assert (card["network"], card["parameters"], card["epochs"]) == ("mynet.Net", 64 * 7 + 7 + 70 + 10, 5)
    assert card["influence"]["searched"] == 50
    assert "precision" not in card["influence"]  # no label was replaced: nothing is known about wrong ones


def test_a_network_as_its_constructor_makes_it(tmp_path: Path) -> None:
    options = ["score.kwargs={depth: 8, width: 2, num_classes: 10, in_channels: 1}", "score.samples=20"]
    options += [*SCORE, "hydra.run.dir=card"]
    result = run_in(tmp_path, "score.module=lightning_fisher.models.resnet", *options, figures=False)
    assert result.code == 0, result.err
    assert read(tmp_path / "card" / "card.json")["sha256"] is None


def test_a_sweep_over_checkpoints_ranks_them(
    runs: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(job: list[str], folder: Path, checked: str) -> int:
        commands.append(job)
        number = float(len(commands))
        made = row(gamma=-100.0 * number, test_error=number, **{"score.checkpoint": folder.name})
        made |= {"config_hash": folder.name.rpartition("-")[2], "study": {"name": "score", "report": "ranking"}}
        made["overrides"] = [f"score.checkpoint={folder.name}"]
        write_row(folder, made)
        return 0

    monkeypatch.setattr(jobs, "_run", run)
    paths = [f"{runs / name}{end}" for name in (PLAIN, FISHER) for end in ("", "/checkpoints/previous.ckpt")]
    result = command("-m", f"score.checkpoint={','.join(paths)}", *SCORE)
    assert result.code == 0, result.err
    assert "4 of 4 jobs complete" in result.out
    assert "| γ̂ " in result.out
    assert "of fewer than 6 runs" in result.out  # a rank correlation of four says nothing
    (folder,) = (tmp_path / "multirun").iterdir()
    assert folder.name == "score"
    assert (folder / "ranking.png").is_file()
    names = [path.name for path in folder.iterdir() if path.is_dir() and complete_row(path, path.name[-8:])]
    assert len([name for name in names if name.startswith(PLAIN)]) == 2
    assert all(f"score.checkpoint='{path}'" in job for path, job in zip(paths, commands, strict=True))


@pytest.mark.slow
def test_a_sweep_with_its_processes(runs: Path) -> None:
    result = run_in(runs, "-m", f"score.checkpoint={PLAIN},{FISHER},{PLAIN}/checkpoints/previous.ckpt", *SCORE)
    assert result.code == 0, result.err
    text = (runs / "multirun" / "score" / "report.md").read_text()
    assert "| γ̂ " in text
    assert "scored 1" in text


def test_a_sweep_over_networks_has_one_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default folder is named by the network: its sweep stood in as many folders, and had no report."""

    def run(job: list[str], folder: Path, checked: str) -> int:
        write_row(folder, row() | {"config_hash": folder.name.rpartition("-")[2]})
        return 0

    monkeypatch.setattr(jobs, "_run", run)
    result = command("-m", "model=resnet8,resnet20")
    assert "2 of 2 jobs complete" in result.out
    (folder,) = (tmp_path / "multirun").iterdir()
    assert len([path for path in folder.iterdir() if path.name.startswith("model=")]) == 2


def test_paths_may_contain_an_equals_sign() -> None:
    given = ["score.checkpoint=a=1/b,c=2", "score.checkpoint=[a=1,b]", "score.checkpoint='x=1'", "seed=0,1"]
    given += ["score.checkpoint=null", "score.checkpoint=[a=1,b],[c,d=2]"]
    assert quoted_paths(given) == [
        "score.checkpoint='a=1/b','c=2'",
        "score.checkpoint=['a=1','b']",
        "score.checkpoint='x=1'",
        "seed=0,1",
        "score.checkpoint=null",
        "score.checkpoint=['a=1','b'],['c','d=2']",
    ]

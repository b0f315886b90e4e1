"""Mistakes in a command that scores: one line, exit code 1, nothing left behind, nothing executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.experiment.conftest import Result
from tests.experiment.scored import run_in, train

RESNET18 = ["score.module=torchvision.models.resnet18"]
TEN = ["score.kwargs={num_classes: 10}"]
MISTAKES = [
    (["score.checkpoint=nope"], ["no `nope`"]),
    (["score.checkpoint=empty"], ["run folder `empty`", "checkpoints/last.ckpt"]),
    (["score.checkpoint=run", "score.which=best"], ["checkpoints/best.ckpt"]),
    (["score.checkpoint=run", "score.which=first"], ["`score.which`", "last or best", "`first`"]),
    (["score.checkpoint=[run,run,run]"], ["`score.checkpoint`", "compare two", "-m"]),
    (["score.checkpoint=[run,other]"], ["same images", "data.seed (0 and 1)"]),
    (["-m", "score.checkpoint=[run,run],[run,run]"], ["`score.checkpoint`", "without -m"]),
    (["score.checkpoint=run", "model=resnet20"], ["`score.checkpoint`", "lacks 72 of the network's 116"]),
    (["score.checkpoint=run", "model.net.width=5"], ["[5, 1, 3, 3] in the network", "[4, 1, 3, 3]"]),
    (["score.checkpoint=run", "score.prefix=nett."], ["score.prefix"]),
    (["score.checkpoint=run", "score.top=0"], ["`score.top`", "at least 1", "`0`"]),
    (["score.checkpoint=run", "score.samples=x"], ["`score.samples`", "`x`"]),
    (["score.checkpoint=run", "score.class_names=[a,b]"], ["`score.class_names`", "10 names", "['a', 'b']"]),
    (["score.checkpoint=run", "score.classnames=[a,b]"], ["`score.classnames`", "`score.class_names`"]),
    (["score.checkpoint=run", "metric.subset_size=5000"], ["`metric.subset_size`", "300", "5000"]),
    (["score.checkpoint=run", "data=cifar10", "data.download=false"], ["CIFAR-10", "data.data_dir"]),
    (["score.checkpoint=run", "trainer.devices=2"], ["`trainer.devices`", "1 when scoring"]),
    (["score.checkpoint=run", "trainer.accelerator=mps"], ["`trainer.accelerator`", "`mps`"]),
    (["score.checkpoint=run", "hydra.run.dir=run"], ["`hydra.run.dir`", "holds the checkpoint"]),
    (["score.checkpoint=run", "hydra.run.dir=run", "restart=true"], ["`hydra.run.dir`", "holds the checkpoint"]),
    (["score.checkpoint=pickled.pt"], ["Python objects", "not executed"]),
    (["score.checkpoint=evil"], ["conf/", "`os.mkdir`", "score.module"]),
    (["score.checkpoint=evil_data"], ["conf/", "`os.mkdir`"]),
    (["score.checkpoint=broken"], ["config.yaml", "no model and data"]),
    (["score.module=torchvision.models.resnet1"], ["`score.module`", "torchvision.models.resnet1"]),
    (["score.module=torch.nn.Identity"], ["trainable parameters"]),
    ([*RESNET18, *TEN], ["[1, 8, 8]", "data=digits", "3 channels"]),
    (["score.module=torch.nn.Linear", "score.kwargs={in_features: 8, out_features: 3}"], ["10 logits", "[1, 8, 3]"]),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    run = train(folder, "run", "reg=none", "metric.at_end=none", "model.max_epochs=1")
    (folder / "empty").mkdir()
    torch.save(nn.Linear(2, 2), folder / "pickled.pt")
    config = (run / "config.yaml").read_text()
    evil = config.replace("lightning_fisher.models.resnet", "os.mkdir").replace("    depth: 8", "    path: made")
    for name, text in (
        ("other", config.replace("  seed: 0\n  num_workers", "  seed: 1\n  num_workers")),
        ("evil", evil),
        ("evil_data", config.replace("  mean: null", "  mean: {_target_: os.mkdir, path: made}")),
        ("broken", "seed: 0\n"),
    ):
        assert text != config
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "checkpoints" / "last.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
        (folder / name / "config.yaml").write_text(text)
    return folder


def snapshot(folder: Path) -> dict[Path, Any]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistake_is_one_line(arguments: list[str], expected: list[str], here: Path) -> None:
    before = snapshot(here)
    widths = ["model.net.width=4"] if any(".pt" in a for a in arguments) else []
    result: Result = run_in(here, *arguments, *widths)
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("Error: ")
    for text in expected:
        assert text in lines[0]
    assert snapshot(here) == before
    assert not (here / "made").exists()
    assert not (here / "outputs").exists()


def test_the_options_that_differ_can_be_set_to_compare(here: Path) -> None:
    options = ["data.seed=0", "metric.num_subsets=2", "metric.subset_size=10", "score.samples=20"]
    result = run_in(here, "score.checkpoint=[run,other]", *options, "hydra.run.dir=compared", figures=False)
    assert result.code == 0, result.err

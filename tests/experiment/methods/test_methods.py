"""Every method by `python run.py reg=...`: its options change the weights; where it makes no sense, one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.experiment.conftest import Command

SHORT = [
    "model.net.width=4",
    "model.max_epochs=2",
    "model.batch_size=32",
    "data.train_size=96",
    "data.validation_size=32",
    "metric.at_end=none",
    "metric.every_n_validations=null",
    "trainer.accelerator=cpu",
]
# What each is run with, and another value of its own parameter.
METHODS = {
    "fisher": (["reg.start=0", "reg.num_sub_batches=4"], "reg.beta=1000.0"),
    "fisher_auto": (["reg.start=0", "reg.num_sub_batches=4"], "reg.strength=100.0"),
    "sam": ([], "reg.rho=0.5"),
    "asam": ([], "reg.adaptive=weights"),
    "gnp": ([], "reg.coefficient=0.1"),
    "fisher_penalty": ([], "reg.weight=3.0"),
    "jacobian": ([], "reg.weight=1.0"),
    "entropy_sgd": (["reg.inner_steps=2"], "reg.gamma=3.0"),
    "path_sgd": (["model=mlp"], "reg.momentum=0.9"),
    "ghost_batch_norm": (["reg.size=8"], "reg.base_batch_size=8"),
    "large_margin": ([], "reg.gamma=5.0"),
    "generalized_cross_entropy": ([], "reg.q=0.1"),
    "flat_minimum_search": (["model=mlp"], "reg.weight=0.1"),
    "swa": (["reg.begin=0.0"], "reg.begin=0.5"),
    "label_smoothing": ([], "model.label_smoothing=0.5"),
}


def weights(folder: Path) -> torch.Tensor:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return torch.cat([v.flatten().double() for k, v in checkpoint["state_dict"].items() if k.startswith("net.")])


@pytest.mark.parametrize("name", METHODS)
def test_its_options_do_something(command: Command, tmp_path: Path, name: str) -> None:
    options, other = METHODS[name]
    found = []
    model = [o for o in options if o.startswith("model=")]
    own = [f"reg={name}", *options]
    for folder, arguments in (("none", ["reg=none", *model]), ("one", own), ("two", [*own, other])):
        done = command(*arguments, *SHORT, f"hydra.run.dir={folder}")
        assert done.code == 0, done.err
        found.append(weights(tmp_path / folder))
        row = json.loads((tmp_path / folder / "result.json").read_text())
        assert 0 <= row["test_calibration_error"] <= 100
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["reg=path_sgd"], "ReLU network without normalization"),
        (["reg=flat_minimum_search"], "without batch-norm.*model=mlp"),
        (["reg=ghost_batch_norm", "model=mlp"], "with batch-norm"),
        (["reg=entropy_sgd", "optimizer=adam"], "no option `optimizer`.*EntropySGD"),
        (["reg=entropy_sgd", "model.manual_optimization=true"], "automatic optimization"),
        (["reg=jacobian", "model.manual_optimization=true"], "automatic optimization"),
        (["reg=large_margin", "model.label_smoothing=0.1"], "no label smoothing"),
        (["reg=generalized_cross_entropy", "model.label_smoothing=0.1"], "no label smoothing"),
        (["reg=generalized_cross_entropy", "reg.q=0"], "`reg.q`.*0"),
        (["reg=sam", "reg.rho=-1"], "`reg.rho`.*-1"),
        (["reg=sam", "reg.adaptive=biases"], "`reg.adaptive`.*biases"),
        (["reg=gnp", "reg.coefficient=2"], "`reg.coefficient`.*2"),
        (["reg=fisher", "reg.beta=automatic"], "`reg.beta`.*automatic"),
        (["reg=fisher_auto", "reg.beta_schedule=cosine"], "`reg.beta_schedule`.*cosine"),
        (["reg=swa", "reg.begin=2.0"], "`reg.begin`.*2.0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(command: Command, arguments: list[str], text: str) -> None:
    done = command(*arguments, *SHORT[1:])
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1
    assert re.search(text, done.err), done.err


def test_the_average_is_what_is_scored(command: Command, tmp_path: Path) -> None:
    """The mean of the weights after the last two of four epochs of a plain run; statistics of its own."""
    options = [*SHORT, "model.max_epochs=4"]
    runs = {"third": ["reg=none", "+trainer.max_steps=9"], "fourth": ["reg=none"], "swa": ["reg=swa", "reg.begin=0.5"]}
    states = []
    for folder, arguments in runs.items():
        done = command(*arguments, *options, f"hydra.run.dir={folder}")
        assert done.code == 0, done.err
        path = tmp_path / folder / "checkpoints" / "last.ckpt"
        states.append(torch.load(path, weights_only=True)["state_dict"])
    third, fourth, average = states
    for name in (key for key in average if key.endswith("weight")):
        assert torch.allclose(average[name], (third[name] + fourth[name]) / 2, atol=1e-6)

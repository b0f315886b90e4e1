"""A mistake in the command: one line that names the option, exit code 1, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiment.conftest import Command

MISTAKES = [
    (["reg.betta=2"], ["`reg.betta`", "`reg.beta`"]),
    (["mdl=resnet20"], ["`mdl`", "`model`"]),
    (["+foo=1"], ["`foo`"]),
    (["+metric.foo=1"], ["`metric.foo`"]),
    (["model=resnet21"], ["`model`", "resnet20", "`resnet21`"]),
    (["model/scheduler=nope"], ["`model/scheduler`", "milestones", "`nope`"]),
    (["logger=[csv,nope]"], ["`logger`", "tensorboard", "`nope`"]),
    (["reg=nope", "reg.beta=1"], ["`reg`", "fisher", "`nope`"]),
    (["reg.beta=abc"], ["`reg.beta`", "a number", "`abc`"]),
    (["reg.beta=-1"], ["`reg.beta`", "-1"]),
    (["reg.beta=nan"], ["`reg.beta`", "nan"]),
    (["reg.start=never"], ["`reg.start`", "first_lr_drop", "never"]),
    (["reg.beta_schedule=linear"], ["`reg.ramp_epochs`"]),
    (["reg.num_sub_batches=100"], ["`reg.num_sub_batches`", "data.batch_size=64", "`100`"]),
    (["trainer.devices=2", "reg.num_sub_batches=7"], ["`reg.num_sub_batches`", "2 processes", "7"]),
    (["metric.subset_size=5000"], ["`metric.subset_size`", "800", "`5000`"]),
    (["metric.batch_norm=train"], ["`metric.batch_norm`", "eval or batch", "`train`"]),
    (["metric.logit_norm=0"], ["`metric.logit_norm`", "positive", "`0`"]),
    (["seed=-1"], ["`seed`", "at least 0", "`-1`"]),
    (["seed=1.5"], ["`seed`", "integer", "`1.5`"]),
    (["seed=1,2"], ["`seed`", "-m", "`1,2`"]),
    (["seed"], ["option=value", "seed"]),
    (["seed=[1"], ["option=value", "[1"]),
    (["model.max_epochs=0"], ["`model.max_epochs`", "at least 1", "`0`"]),
    (["model.optimizer.lr=-1"], ["model.optimizer", "-1"]),
    (["model.net.depth=9"], ["`model.net.depth`", "9"]),
    (["data=cifar10"], ["data", "CIFAR-10", "data.data_dir"]),
    (["data=arrays", "data.path=nope.npz"], ["data", "nope.npz"]),
    (["data.confusion_size=5000"], ["`data.confusion_size`", "5000"]),
    (["data.augmentation=crop"], ["`data.augmentation`", "4-crop-f", "crop"]),
    (["stop=3"], ["`stop`", "3"]),
    (["trainer.precision=7"], ["trainer", "7"]),
    (["hydra.run.dir=/dev/null/run"], ["`hydra.run.dir`", "writable", "/dev/null/run"]),
    (["-m", "seed=0,1", "model=resnet8,nope"], ["`model`", "`nope`"]),
    (["-m", "reg.betta=1,2"], ["`reg.betta`", "`reg.beta`"]),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistake_is_one_line(arguments: list[str], expected: list[str], command: Command, tmp_path: Path) -> None:
    result = command(*arguments)
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("Error: ")
    for text in expected:
        assert text in lines[0]
    assert "Traceback" not in result.err + result.out
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(command: Command) -> None:
    with pytest.raises(Exception, match=r"reg\.beta"):
        command("reg.beta=abc", "debug=true")


def test_environment_variable_shows_the_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"reg\.betta"):
        command("reg.betta=1")

"""A mistake in the command: one line that names the option, exit code 1, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.experiment.conftest import Command
from tests.experiment.refusals import refusal

Mistake = tuple[list[str], list[str]]

# What is wrong, by kind: the command, and what its line must say.
NAMES: list[Mistake] = [
    (["reg.betta=2"], ["`reg.betta`", "`reg.beta`"]),
    (["mdl=resnet20"], ["`mdl`", "`model`"]),
    (["+foo=1"], ["`foo`"]),
    (["+a.b.c=1"], ["`a.b.c`"]),
    (["+metric.foo=1"], ["`metric.foo`"]),
    (["+model.lr=0.01"], ["`model.lr`"]),
    (["+reg.typo=1"], ["`reg.typo`"]),
    (["reg=none", "+reg.typo=1"], ["`reg.typo`"]),
    (["+model.optimizer.foo=1"], ["`model.optimizer.foo`"]),
    (["+trainer.foo=1"], ["`trainer.foo`"]),
    (["+trainer.callbacks=[]"], ["`trainer.callbacks`", "set by the program"]),
    (["+logger.mine=1"], ["`logger.mine`", "node"]),
    (["model=resnet21"], ["`model`", "resnet20", "`resnet21`"]),
    (["model/scheduler=nope"], ["`model/scheduler`", "milestones", "`nope`"]),
    (["logger=none"], ["`logger`", "csv", "`none`", "`logger=[]` chooses none"]),
    (["logger=[csv,nope]"], ["`logger`", "tensorboard", "`nope`"]),
    (["reg=nope", "reg.beta=1"], ["`reg`", "fisher", "`nope`"]),
    (["reg=null"], ["by name", "`reg=none`", "null"]),
    (["reg._target_=nowhere.Nothing"], ["reg", "nowhere.Nothing"]),
    (["+data._partial_=true"], ["`data._target_`", "ImageDataModule"]),
    (["model.optimizer=adam"], ["`model.optimizer`", "node", "`optimizer=adam` chooses one"]),
    (["+model.max_epochs=3"], ["Option `model.max_epochs` exists already", "without `+`"]),
]
SWEEPS: list[Mistake] = [
    (["-m", "seed=range(0)"], ["at least one job", "an empty list of values"]),
    (["-m", "model=glob(*nothing*)"], ["at least one job", "an empty list of values"]),
    (["-m", "model=glob(resnet*)", "seed=x"], ["`seed`", "`x`", "job `model=resnet20`"]),
    (["-m", "seed=[0,1]"], ["`seed`", "an integer", "`[0, 1]`", "`-m seed=0,1` runs one job for each"]),
    (["reg.beta=[0,10]"], ["`reg.beta`", "`-m reg.beta=0,10` runs one job for each"]),
    (["-m", "seed=0,1", "hydra.sweep.dir=/dev/null/x"], ["`hydra.sweep.dir`", "a writable folder", "/dev/null"]),
    (["-m", "seed=0,x", "hydra.sweep.subdir=${hydra.job.num}"], ["`seed`", "`x`", "job `seed=x`"]),
    (["reg=[fisher,sam]"], ["`reg`", "one of its configs", "`[fisher,sam]`", "-m reg=fisher,sam"]),
    (["-m", "seed=0,1", "model=resnet8,nope"], ["`model`", "`nope`"]),
    (["-m", "reg.betta=1,2"], ["`reg.betta`", "`reg.beta`"]),
    (["-m", "seed=0,1", "seed=2"], ["`seed`", "once in a sweep", "`seed=0,1` and `seed=2`"]),
    (["-m", "reg=fisher", "++seed=2", "reg=none,sam"], ["`reg`", "once in a sweep", "`reg=fisher` and `reg=none,sam`"]),
    (["-m", "hydra/launcher=nope"], ["`hydra/launcher`", "basic", "`nope`"]),
]
SUGGESTIONS: list[Mistake] = [
    (["lr=0.1"], ["`lr`", "Did you mean `model.optimizer.lr`?"]),
    (["label_noise=0.4"], ["`label_noise`", "Did you mean `data.label_noise`?"]),
    (["reg=fischer"], ["`reg`", "fisher", "`fischer`", "Did you mean `fisher`?"]),
    (["model=resnet_20"], ["`model`", "`resnet_20`", "Did you mean `resnet20`?"]),
    (["data=cifar_10"], ["`data`", "`cifar_10`", "Did you mean `cifar10`?"]),
    (["experiment=demos"], ["`experiment`", "`demos`", "Did you mean `demo`?"]),
    (["scenario=confuson"], ["`scenario`", "`confuson`", "Did you mean `confusion`?"]),
    (["comparison=sma"], ["`comparison`", "`sma`", "Did you mean `"]),
    (["optimizer=adamW"], ["`optimizer`", "`adamW`", "Did you mean `adamw`?"]),
    (["variation=wider"], ["`variation`", "`wider`", "Did you mean `wide`?"]),
    (["callbacks=[lr_moniter]"], ["`callbacks`", "`lr_moniter`", "Did you mean `lr_monitor`?"]),
    (["logger=wandbb"], ["`logger`", "`wandbb`", "Did you mean `wandb`?"]),
    (["trainer=cpus"], ["`trainer`", "`cpus`", "Did you mean `cpu`?"]),
    (["model/scheduler=cosin"], ["`model/scheduler`", "`cosin`", "Did you mean `cosine`?"]),
    (["experiment=table1", "size=digit"], ["`size`", "`digit`", "Did you mean `digits`?"]),
    (["data.augmentation=4-crop"], ["`data.augmentation`", "4-crop-f", "'4-crop'", "Did you mean `4-crop-f`?"]),
    (["data.name=digit"], ["`data.name`", "digits", "'digit'", "Did you mean `digits`?"]),
    (["reg.difference=backwards"], ["`reg.difference`", "'backwards'", "Did you mean `backward`?"]),
    (["reg.gradient=sharde"], ["`reg.gradient`", "'sharde'", "Did you mean `shared`?"]),
    (["reg.step=normalizd"], ["`reg.step`", "'normalizd'", "Did you mean `normalized`?"]),
    (["reg.scaling=lineer"], ["`reg.scaling`", "'lineer'", "Did you mean `linear`?"]),
    (["reg.passes=vmpa"], ["`reg.passes`", "'vmpa'", "Did you mean `vmap`?"]),
    (["reg.beta_schedule=cosin"], ["`reg.beta_schedule`", "'cosin'", "Did you mean `cosine`?"]),
    (["reg.beta=atuo"], ["`reg.beta`", "auto", "`atuo`", "Did you mean `auto`?"]),
    (["metric.scale=filters"], ["`metric.scale`", "filter", "`filters`", "Did you mean `filter`?"]),
    (["metric.batch_norm=evall"], ["`metric.batch_norm`", "`evall`", "Did you mean `eval`?"]),
    (["metric.at_end=gama"], ["`metric.at_end`", "`gama`", "Did you mean `gamma`?"]),
    (["metric.measures=[recommendd]"], ["`metric.measures`", "recommended", "recommendd", "mean `recommended`?"]),
    (["score.which=lst"], ["`score.which`", "`lst`", "Did you mean `last`?"]),
    (["model.scheduler_interval=epochs"], ["`model.scheduler_interval`", "`epochs`", "Did you mean `epoch`?"]),
    (["trainer.deterministic=wran"], ["`trainer.deterministic`", "`wran`", "Did you mean `warn`?"]),
    (["reg=sam", "reg.adaptive=weight"], ["`reg.adaptive`", "weights", "`weight`", "Did you mean `weights`?"]),
    (["reg=ghost_batch_norm", "reg.update=average"], ["`reg.update`", "averaged", "Did you mean `averaged`?"]),
    (["reg=large_margin", "reg.scores=logit"], ["`reg.scores`", "logits", "Did you mean `logits`?"]),
    (
        ["reg=fisher_penalty", "reg.derivative=double_backwards"],
        ["`reg.derivative`", "Did you mean `double_backward`?"],
    ),
]
TYPES: list[Mistake] = [
    (["reg.beta=abc"], ["`reg.beta`", "a number", "`abc`"]),
    (["reg.beta=true"], ["`reg.beta`", "a number", "`true`"]),
    (["reg.beta={a: 1}"], ["`reg.beta`", "a number", "{'a': 1}"]),
    (["reg.beta=null"], ["`reg.beta`", "number", "null"]),
    (["reg.num_sub_batches=2.5"], ["`reg.num_sub_batches`", "an integer", "`2.5`"]),
    (["seed=1.5"], ["`seed`", "integer", "`1.5`"]),
    (["metric.hessian=maybe"], ["`metric.hessian`", "true or false", "`maybe`"]),
    (["metric.scale=unit"], ["`metric.scale`", "none, layer, filter or element", "`unit`"]),
    (["metric.residual=no-thanks"], ["`metric.residual`", "true or false", "`no-thanks`"]),
    (["metric.measures=[1]"], ["`metric.measures`", "a list of them", "[1]"]),
    (["metric.measures=[sharpnes]"], ["metric.measures", "sharpnes"]),
    (["metric=5"], ["`metric`", "a node", "`5`"]),
    (["model.net=null"], ["`model.net`", "a node", "`null`"]),
    (["model.scheduler=cosine"], ["`model.scheduler`", "`model/scheduler=cosine`"]),
    (["model.optimizer.lr=null"], ["`model.optimizer.lr`", "number", "`null`"]),
    (["model.milestones=0.5"], ["`model.milestones`", "[0.5,0.75]", "`0.5`"]),
    (["stop=3"], ["`stop`", "3"]),
    (["trainer.devices=true"], ["`trainer.devices`", "auto", "`true`"]),
    (["trainer.deterministic=always"], ["`trainer.deterministic`", "warn", "`always`"]),
    (["restart=null"], ["`restart`", "true or false", "`null`"]),
    (["~reg.beta"], ["`reg.beta`", "deleted"]),
    (["~metric"], ["`metric`", "deleted"]),
    (["~seed"], ["`seed`", "there is none"]),
]
RANGES: list[Mistake] = [
    (["reg.beta=-1"], ["`reg.beta`", "-1"]),
    (["reg.beta=nan"], ["`reg.beta`", "nan"]),
    (["reg.alpha=0"], ["`reg.alpha`", "positive", "0"]),
    (["reg.alpha=1e-60"], ["`reg.alpha`", "float32", "1e-60"]),
    (["reg.start=never"], ["`reg.start`", "first_lr_drop", "never"]),
    (["reg.gradient=half"], ["`reg.gradient`", "full, shared", "half"]),
    (["reg.perturbed=9"], ["`reg.perturbed`", "8", "9"]),
    (["reg.every_n_steps=0"], ["`reg.every_n_steps`", "0"]),
    (["reg.scaling=cube"], ["`reg.scaling`", "linear, sqrt", "cube"]),
    (["reg.passes=both"], ["`reg.passes`", "auto, loop, vmap", "both"]),
    (["reg.passes=vmap", "reg.gradient=shared"], ["`reg.passes`", "shared", "vmap"]),
    (["reg.beta_schedule=linear"], ["`reg.ramp_epochs`"]),
    (["reg.num_sub_batches=100"], ["`reg.num_sub_batches`", "data.batch_size=64", "`100`"]),
    (["reg.num_sub_batches=10", "data.train_size=9", "metric.subset_size=5"], ["`reg.num_sub_batches`", "9", "`10`"]),
    (["trainer.devices=2", "reg.num_sub_batches=7"], ["`reg.num_sub_batches`", "2 processes", "7"]),
    (["metric.subset_size=5000"], ["`metric.subset_size`", "800", "`5000`"]),
    (["metric.subset_size=1"], ["`metric.subset_size`", "at least 2", "`1`"]),
    (["metric.batch_norm=train"], ["`metric.batch_norm`", "eval or batch", "`train`"]),
    (["metric.logit_norm=0"], ["`metric.logit_norm`", "positive", "`0`"]),
    (["seed=-1"], ["`seed`", "at least 0", "`-1`"]),
    (["seed=4294967296"], ["`seed`", "4294967295", "`4294967296`"]),
    (["model.max_epochs=0"], ["`model.max_epochs`", "at least 1", "`0`"]),
    (["model.max_epochs=1e3"], ["`model.max_epochs`", "integer", "`1000.0`"]),
    (["model.milestones=[0.9,0.1]"], ["`model.milestones`", "ascending", "[0.9, 0.1]"]),
    (["model.label_smoothing=2"], ["`model.label_smoothing`", "0 to 1", "`2`"]),
    (["model.scheduler_interval=never"], ["`model.scheduler_interval`", "epoch or step", "`never`"]),
    (["model.optimizer.lr=-1"], ["`model.optimizer.lr`", "-1"]),
    (["model.optimizer.momentum=-1"], ["model.optimizer", "momentum", "-1"]),
    (["model.name=../../elsewhere"], ["`model.name`", "letters"]),
    (["trainer.precision=7"], ["`trainer.precision`", "bf16-mixed", "`7`"]),
    (["trainer.strategy=nope"], ["trainer", "nope"]),
    (["trainer.limit_train_batches=0"], ["`trainer.limit_train_batches`", "at least 1", "`0`"]),
    (["+trainer.max_steps=0"], ["`trainer.max_steps`", "at least 1", "`0`"]),
]
TOGETHER: list[Mistake] = [
    (["+trainer.overfit_batches=0.001"], ["trainer", "0.001", "limit_train_batches"]),
    (["model.net.depth=9"], ["`model.net.depth`", "9"]),
    (["model.net.num_classes=5"], ["`model.net`", "data.num_classes=10", "[2, 5]"]),
    (["model.net.in_channels=3"], ["model.net", "3 channels"]),
    (["model/scheduler=plateau", "model.scheduler_monitor=nothing"], ["`model.scheduler_monitor`", "train_loss"]),
    (["trainer.precision=16-true"], ["FisherRegularizer", "float32", "16-true"]),
    (["trainer.limit_train_batches=0.01"], ["`trainer.limit_train_batches`", "1/13", "`0.01`"]),
    (["data.confusion_size=5000"], ["`data.confusion_size`", "5000"]),
    (["data.augmentation=crop"], ["`data.augmentation`", "4-crop-f", "crop"]),
    (["data.mean=[0.5]"], ["`mean` and `std`", "both"]),
]
SCORING: list[Mistake] = [
    (["score.checkpoint=nowhere"], ["`score.checkpoint`", "`nowhere`"]),
    (["score.checkpoint=nowhere", "score.top=0"], ["`score.top`", "at least 1", "`0`"]),
]
SYNTAX: list[Mistake] = [
    (["seed=1,2"], ["`seed`", "-m", "`1,2`"]),
    (["seed"], ["option=value", "seed"]),
    (["seed=[1"], ["option=value", "[1"]),
    (["seed==1"], ["option=value", "seed==1"]),
    (["seed='1"], ["option=value", "seed='1"]),
    (["seed=${nope}"], ["`nope`", "refers to"]),
    (["--nope"], ["--help", "--nope"]),
    (["--config-dir=/nowhere"], ["/nowhere"]),
]
# Whole commands: some of every kind, and what only the command line knows. The others stop before the folder.
COMMANDS = [*SYNTAX, *SWEEPS, *NAMES[:5], *TYPES[:3], *RANGES[:3], *TOGETHER[:4], *SCORING]
CONFIGS = [*SUGGESTIONS, *NAMES[5:], *TYPES[3:], *RANGES[3:], *TOGETHER[4:]]


def ids(mistakes: list[Mistake]) -> list[str]:
    return [" ".join(arguments) for arguments, _ in mistakes]


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS, ids=ids(COMMANDS))
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


@pytest.mark.parametrize(("arguments", "expected"), CONFIGS, ids=ids(CONFIGS))
def test_option_is_refused(arguments: list[str], expected: list[str], tmp_path: Path) -> None:
    """Without Hydra's main function, which takes most of the time of a command that is refused."""
    line = refusal(arguments, tmp_path)
    assert line is not None
    assert "\n" not in line
    for text in expected:
        assert text in line
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_refused_without_a_reason(tmp_path: Path) -> None:
    assert refusal([], tmp_path) is None
    assert (
        refusal(["reg=none", "model.optimizer.lr=0.2", "~trainer.accelerator", "logger=[csv,wandb]"], tmp_path) is None
    )
    stop = "+stop._target_=lightning_fisher.callbacks.convergence.StopAtConvergence"
    assert refusal([stop, "model/scheduler=plateau", "trainer.devices=[0]", "reg.start=3"], tmp_path) == (
        "Expected option `trainer.devices` to be one that Lightning takes, but got `[0]`: `devices` selected with "
        "`CPUAccelerator` should be an int > 0."
    )
    assert refusal([stop, "model/scheduler=plateau", "trainer.devices=auto", "reg.start=3"], tmp_path) is None


def test_a_compiler_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["model=mlp", "data=digits", "trainer.accelerator=cpu"]
    message = "No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace"

    def compiled(function: object, **options: object) -> mock.Mock:
        return mock.Mock(side_effect=RuntimeError(message))  # as torch does it: when it is first called

    monkeypatch.setattr(torch, "compile", compiled)
    line = refusal([*small, "model.compile=true"], tmp_path)
    assert line == (
        "Expected option `model.compile` to be false where torch.compile fails: No working C++ compiler found"
    )
    assert refusal(small, tmp_path) is None


def test_how_many_there_are() -> None:
    mistakes = [tuple(arguments) for arguments, _ in [*COMMANDS, *CONFIGS]]
    assert len(mistakes) == len(set(mistakes)) > 90


def test_debug_shows_the_traceback(command: Command) -> None:
    with pytest.raises(Exception, match=r"reg\.beta"):
        command("reg.beta=abc", "debug=true")


def test_environment_variable_shows_the_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"reg\.betta"):
        command("reg.betta=1")

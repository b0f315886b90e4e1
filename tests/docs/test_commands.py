"""The commands of README and documentation compose as they stand and run in their small form."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from torchvision.models import resnet18

from lightning_fisher.experiment import main
from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME
from lightning_fisher.experiment.config.config_hash import flat_config
from lightning_fisher.experiment.config.resolvers import register_resolvers
from lightning_fisher.experiment.report.write_report import main as report
from tests.docs.pages import ROOT
from tests.docs.small_form import PROGRAM, RUNS, documented, is_slow, small, write_page_files
from tests.experiment.conftest import QUICK, Command

DOCUMENTED = documented()
COMMANDS = {f"{page}: {line}": match["rest"] or "" for page, line in DOCUMENTED if (match := PROGRAM.match(line))}
CHEAP = [name for name, arguments in COMMANDS.items() if not is_slow(arguments)]
# Runs and cards whose parts other commands here, or `test_own_model_data_scenario_and_callback_train`, have.
REPEATS = re.compile(
    r"extending: python -m|experiments: lightning-fisher|getting-started: python run\.py (model|reg)"
    r"|metric-card: python run\.py score.checkpoint=outputs/digits-resnet8/default-5dc3ce59$"
)
SLOW = [name for name in COMMANDS if name not in CHEAP]
REPORT = "python -m lightning_fisher.experiment.report multirun/digits-resnet8 --x reg.beta"
ELSEWHERE = [  # what no test here runs, and where it is run
    r"pip install .*",  # .ci/run
    r"pytest",  # .ci/run
    r"python -m benchmarks.*",  # tests/benchmarks/test_command.py, with --quick and --report
    r"torchrun .*|run\.py trainer=ddp trainer\.num_nodes=2 .*",  # tests/distributed/test_two_nodes.py
    r"srun python run\.py .*",  # the command after srun is another page's
    r"runs=.*",
    re.escape(REPORT),
    r"python -m lightning_fisher\.experiment\.zoo .*",  # tests/experiment/test_zoo.py
    r"python -m lightning_fisher\.experiment\.report \S+ --as scenarios",  # tests/experiment/report/test_scenarios.py
    r"python results/cifar10_archive\.py data cifar10\.npz",  # tests/docs/test_cifar10_archive.py
    r"python run\.py -m experiment=\w+ size=(cifar_small|paper10k).*",  # hours: composed by the tests of the configs
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: runs, images, weights, and the files that a page tells to write."""
    folder = tmp_path_factory.mktemp("documented")
    write_page_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["run.py", *QUICK, f"hydra.run.dir={RUNS[0]}"])
        main()
    for other in (*RUNS[1:], "multirun/digits-resnet8/one"):
        shutil.copytree(folder / RUNS[0], folder / other)
    random = np.random.default_rng(0)
    for name, size, classes in (("images", 16, 10), ("my", 32, 5)):
        arrays = {}
        for split, count in (("train", 100), ("test", 20)):
            arrays[f"{split}_images"] = random.integers(256, size=(count, size, size, 3), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(count) % classes
        np.savez(folder / f"{name}.npz", **arrays)
    torch.save(resnet18(num_classes=10).state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with links to all of it."""
    for path in shared.iterdir():
        if path.name in ("outputs", "multirun"):
            shutil.copytree(path, tmp_path / path.name)
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_every_command_runs_somewhere() -> None:
    assert len(CHEAP) >= 12
    for _, line in DOCUMENTED:
        assert PROGRAM.match(line) or any(re.fullmatch(pattern, line) for pattern in ELSEWHERE), line


@pytest.mark.parametrize("name", COMMANDS)
def test_command_composes(name: str, folder: Path) -> None:
    """As it stands."""
    words = [word for word in shlex.split(COMMANDS[name]) if not word.startswith("-") and word != "job"]
    own = [f"file://{folder / 'my_configs'}"] if "--config-dir" in COMMANDS[name] else []
    overrides = []
    for override in OverridesParser.create().parse_overrides([word.replace("$runs", "a,b") for word in words]):
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [None]
        text = override.input_line if values == [None] else f"{override.key_or_group}={values[0]}"
        overrides.append(text.replace("my_model", "two_layers"))
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(CONFIG_NAME, overrides=[*overrides, f"hydra.searchpath={own}"])
        assert flat_config(cfg)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * bool(REPEATS.match(n))) for n in CHEAP])
def test_command_runs(name: str, folder: Path, command: Command) -> None:
    """In its small form, in this process."""
    result = command(*small(COMMANDS[name]))
    assert result.code == 0, result.err
    if "--cfg" in COMMANDS[name]:
        assert "max_epochs: " in result.out
    elif "score.checkpoint" in COMMANDS[name]:
        assert list(folder.rglob("card.json"))
    else:
        assert "test error" in result.out
        (path,) = (path for path in folder.glob("outputs/*/*/result.json") if "5dc3ce59" not in path.parent.name)
        assert json.loads(path.read_text())["epochs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_command_runs_in_processes_of_its_own(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its small form: sweeps, and several processes."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{folder}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = [sys.executable, "-m", "lightning_fisher.experiment", *small(COMMANDS[name])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    if "score.checkpoint" in COMMANDS[name]:
        assert len(list(folder.rglob("card.json"))) >= 2
    elif "-m" in shlex.split(COMMANDS[name]):
        assert re.search(r"(\d+) of \1 jobs complete", done.stdout), done.stdout
    else:
        assert "test error" in done.stdout


def test_the_report_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(REPORT.split()[3:])
    assert "report.md" in capsys.readouterr().out
    assert (folder / "multirun" / "digits-resnet8" / "report.md").is_file()


def test_own_model_data_scenario_and_callback_train(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["model.max_epochs=10", "data.validation_size=0", "metric.at_end=gamma", "metric.num_subsets=2"]
    quick += ["metric.every_n_validations=null", "metric.subset_size=20", "trainer.accelerator=cpu"]
    chosen = ["--config-dir=my_configs", "model=two_layers", "data=blobs", "scenario=small", "model.net.width=32"]
    chosen += ["callbacks=announce", "callbacks.announce.every=9"]
    monkeypatch.setattr(sys, "argv", ["lightning-fisher", *chosen, *quick])
    main()
    assert "test error" in capsys.readouterr().out
    (path,) = folder.glob("outputs/blobs-two_layers/*/result.json")
    row = json.loads(path.read_text())
    assert row["training_samples"] == 100
    assert row["parameters"] == 64 * 32 + 32 + 32 * 8 + 8
    assert row["test_error"] < 50  # by chance: 87.5

"""The wheel holds what it should, and works without the checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import lightning_fisher
from tests.packaging.conftest import ROOT


def files(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_the_package_and_its_configs(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {f"lightning_fisher/{name}" for name in files(ROOT / "lightning_fisher", "*.py")}
    configs = {f"lightning_fisher/conf/{name}" for name in files(ROOT / "conf", "*.yaml")}
    assert names == code | configs | {"lightning_fisher/py.typed"}


def test_the_version_is_the_same_everywhere(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    assert message_from_bytes(archive.read(metadata))["Version"] == lightning_fisher.__version__
    assert lightning_fisher.__version__ not in (ROOT / "pyproject.toml").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] in (lightning_fisher.__version__, "Unreleased")
    assert f"\nversion: {lightning_fisher.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture
def own_network(tmp_path: Path) -> list[str]:
    """A network and its recipe in an empty folder; the arguments that choose them."""
    (tmp_path / "networks.py").write_text(
        "from torch import nn\n"
        "def mlp(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))\n"
    )
    (tmp_path / "own" / "model").mkdir(parents=True)
    recipe = (ROOT / "conf" / "model" / "resnet8.yaml").read_text()
    recipe = recipe.replace("lightning_fisher.models.resnet", "networks.mlp").replace("name: resnet8", "name: own_mlp")
    recipe = re.sub(r"^  (depth|width): .*\n", "", recipe, flags=re.MULTILINE)
    (tmp_path / "own" / "model" / "own_mlp.yaml").write_text(recipe)
    return ["--config-dir=own", "model=own_mlp"]


SCRIPT = """
import runpy
import sys

absent = ["hydra", "omegaconf", "sklearn", "wandb"]
for name in absent:
    sys.modules[name] = None
runpy.run_path("{installed}", run_name="__main__")
import lightning_fisher
from lightning_fisher.experiment import main

print("found in", lightning_fisher.__file__)
try:
    main()
except SystemExit as end:
    print(end)
for name in absent:
    del sys.modules[name]
main()  # prints the composed config
"""


def test_library_and_command_work_without_the_checkout(
    tmp_path: Path, installed: dict[str, str], own_network: list[str]
) -> None:
    """The README's examples without the experiments' dependencies; then, with them, packaged and own configs."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("{installed}", str(ROOT / ".ci" / "installed.py")))
    out = run(["script.py", *own_network, "--cfg=job"], tmp_path, installed)
    assert f"found in {installed['PYTHONPATH']}" in out
    needed = "the experiments need `hydra`: install lightning-fisher with its extra [experiments]."
    assert f"Error: {needed}" in out
    assert "_target_: networks.mlp" in out
    assert "_target_: lightning_fisher.callbacks.FisherRegularizer" in out


@pytest.mark.slow
def test_a_sweep_of_an_own_network_runs_without_the_checkout(
    tmp_path: Path, installed: dict[str, str], own_network: list[str]
) -> None:
    """The jobs, each in its own process, find the configs and the module too."""
    quick = ["model.max_epochs=1", "trainer.accelerator=cpu", "metric.at_end=none", "metric.every_n_validations=null"]
    out = run(["-m", "lightning_fisher.experiment", "-m", *own_network, *quick], tmp_path, installed)
    assert "1 of 1 jobs complete" in out
    (path,) = (tmp_path / "multirun" / "digits-own_mlp").glob("*/result.json")
    row = json.loads(path.read_text())
    assert row["parameters"] == 64 * 10 + 10
    assert row["commit"] is None  # the package is no checkout

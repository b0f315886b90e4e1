"""A package that is not installed is named with the command that installs it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_fisher.label_errors.command import main as label_errors
from lightning_fisher.optional_packages import COMMANDS, LAUNCHERS, missing_package, require_package
from tests.experiment.conftest import command  # noqa: F401
from tests.experiment.refusals import refusal

tomllib = pytest.importorskip("tomllib")
ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if packages were not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in names:
            monkeypatch.delitem(sys.modules, name)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_the_extras_exist_and_hold_the_packages() -> None:
    distributions = {"sklearn": "scikit-learn", "hydra": "hydra-core", "tensorboardX": "tensorboard"}
    for name, line in COMMANDS.items():
        if "lightning-fisher[" in line:
            extra = EXTRAS[line.partition("[")[2].partition("]")[0]]
            assert any(one.startswith(distributions.get(name, name)) for one in extra), name
    assert all(line.partition("[")[2].partition("]")[0] in EXTRAS for line in LAUNCHERS.values())


@pytest.mark.parametrize(
    ("package", "arguments", "line"),
    [
        ("timm", ["optimizer=lion"], "pip install timm"),
        ("timm", ["model.optimizer._target_=timm.optim.Lion", "~model.optimizer.momentum"], "pip install timm"),
        ("transformers", ["model.optimizer._target_=transformers.Adafactor"], "pip install transformers"),
        ("sklearn", [], 'pip install "lightning-fisher[experiments]"'),
    ],
)
def test_a_missing_package_of_a_run(
    package: str, arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide(monkeypatch, package)
    said = refusal(arguments, tmp_path)
    assert said is not None
    assert f"needs the package `{package}`, which is not installed: {line}" in said
    assert "\n" not in said


def test_a_typo_is_no_missing_package(tmp_path: Path) -> None:
    said = refusal(["model.optimizer._target_=timm.optim.Lionn"], tmp_path)
    assert said is not None
    assert "timm.optim.Lionn" in said
    assert "pip" not in said


def test_a_missing_launcher(command) -> None:  # noqa: F811
    done = command("-m", "hydra/launcher=ray", "seed=0,1")
    assert done.code == 1
    assert 'pip install "lightning-fisher[ray]"' in done.err


def test_wrong_labels_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the training."""
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) % 3)
    hide(monkeypatch, "matplotlib")
    assert label_errors(["a.npz", "--epochs", "1"]) == 1
    said = capsys.readouterr().err
    assert "--images=none" in said
    assert 'pip install "lightning-fisher[experiments]"' in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_causes_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cleanlab")
    with pytest.raises(ImportError) as caught:
        require_package("cleanlab", "the comparison")
    line = 'which is not installed: pip install "lightning-fisher[tutorials]"'
    assert str(caught.value) == f"the comparison needs the package `cleanlab`, {line}"
    outer = RuntimeError("no")
    outer.__cause__ = caught.value
    assert missing_package(outer) == str(caught.value)
    with pytest.raises(ImportError) as plain:
        import cleanlab  # noqa: F401
    assert missing_package(plain.value) == f"this needs the package `cleanlab`, {line}"
    assert missing_package(ValueError("no")) is None
    assert missing_package(None) is None

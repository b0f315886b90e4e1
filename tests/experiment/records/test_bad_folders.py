"""Run folders that are not what they should be, and checkpoints in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_fisher.exceptions import ConfigError
from lightning_fisher.experiment.records.result import read_row
from lightning_fisher.experiment.training.build import make_module
from lightning_fisher.experiment.training.preflight import check_checkpoint
from tests.experiment.conftest import QUICK, Command, Result
from tests.experiment.refusals import checked

RUN = [*QUICK, "hydra.run.dir=run", "metric.at_end=none", "metric.every_n_validations=null"]


def error(result: Result) -> str:
    """The one line."""
    assert result.code == 1
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("Error: ")
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("restart", ["restart=false", "restart=true"])
@pytest.mark.parametrize("folder", ["mine", "."])
def test_a_folder_of_other_files_is_left_alone(folder: str, restart: str, command: Command, tmp_path: Path) -> None:
    """With restart=true everything in it would be removed."""
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "mine" / "deep" / "data.bin").write_bytes(b"1")
    before = contents(tmp_path)
    line = error(command(*QUICK, f"hydra.run.dir={folder}", restart))
    assert "`hydra.run.dir`" in line
    assert "other files" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made(place: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    line = error(command(*QUICK, f"hydra.run.dir={place}"))
    assert "`hydra.run.dir`" in line
    assert place in line
    assert contents(tmp_path) == {"file": b"no folder"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second, complete."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("finished")
    with patch.context() as context:
        context.chdir(folder)
        context.setattr("sys.argv", ["run.py", *RUN])
        from lightning_fisher.experiment import main

        main()
    return folder / "run"


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """The same before its last line: the command goes on from its checkpoint."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def another_width(kept: dict[str, Any]) -> dict[str, Any]:
    """As of a network with other layers."""
    kept["state_dict"] = {
        name: torch.cat([value, value]) if value.ndim else value for name, value in kept["state_dict"].items()
    }
    return kept


def other_names(kept: dict[str, Any]) -> dict[str, Any]:
    kept["state_dict"] = {f"model.{name}": value for name, value in kept["state_dict"].items()}
    return kept


NOT_OF_THIS_RUN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another network": (another_width, "does not fit this network"),
    "other names": (other_names, "does not fit this network"),
    "weights alone": (lambda kept: kept["state_dict"], "no state of a training"),
    "a list": (lambda kept: [1, 2], "no state of a training"),
    "nothing": (lambda kept: {}, "no state of a training"),
}


@pytest.mark.parametrize(("change", "reason"), NOT_OF_THIS_RUN.values(), ids=NOT_OF_THIS_RUN)
def test_a_checkpoint_that_is_not_of_this_run(
    change: Callable[[dict[str, Any]], Any], reason: str, finished: Path, tmp_path: Path
) -> None:
    module = make_module(checked(RUN).model)
    check_checkpoint(module, finished / "checkpoints" / "last.ckpt")
    torch.save(change(state(finished / "checkpoints" / "last.ckpt")), tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match=rf"other\.ckpt.*{reason}"):
        check_checkpoint(module, tmp_path / "other.ckpt")


def test_a_command_whose_checkpoint_is_not_its_own(interrupted: Path, command: Command) -> None:
    last, reason = interrupted / "checkpoints" / "last.ckpt", "does not fit this network"
    torch.save(another_width(state(last)), last)
    before = contents(interrupted)
    line = error(command(*RUN))
    assert "last.ckpt" in line
    assert reason in line
    assert "restart=true" in line
    assert contents(interrupted) == before


@pytest.mark.parametrize("config", [b"", b"\xff\xfe\x00"], ids=["empty", "binary"])
def test_a_config_that_is_none_of_ours(config: bytes, interrupted: Path, command: Command) -> None:
    (interrupted / "config.yaml").write_bytes(config)
    before = contents(interrupted)
    assert "other files" in error(command(*RUN, "restart=true"))
    assert contents(interrupted) == before


@pytest.mark.parametrize("row", [b"", b"{", b"[]", b"\xff", b'{"format": 99}'])
def test_a_row_that_cannot_be_read_is_none(row: bytes, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(row)
    assert read_row(tmp_path) is None


def test_a_run_with_such_a_row_goes_on(interrupted: Path, command: Command) -> None:
    """From its last checkpoint, here to its end."""
    (interrupted / "result.json").write_bytes(b"{")
    result = command(*RUN)
    assert result.code == 0, result.err
    assert b"test_error" in (interrupted / "result.json").read_bytes()

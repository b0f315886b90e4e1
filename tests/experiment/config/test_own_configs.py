"""A config of the user's with the name of one of the program, which Hydra would leave out without a word."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning_fisher.experiment.config.compose import CONFIG_DIR
from tests.experiment.conftest import Command


def own(folder: Path, place: str, text: str) -> str:
    path = folder / "own" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return f"--config-dir={folder / 'own'}"


def test_a_name_of_the_program_is_refused(command: Command, tmp_path: Path) -> None:
    flag = own(tmp_path, "model/mlp.yaml", "name: mine\n")
    result = command(flag, "model=mlp")
    assert result.code == 1
    assert f"Expected `{tmp_path / 'own' / 'model' / 'mlp.yaml'}` to have a name of its own" in result.err
    assert "which `model=mlp` means: rename the file, to `my_mlp.yaml` say" in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_is_refused_before_its_first_job(command: Command, tmp_path: Path) -> None:
    result = command(own(tmp_path, "reg/none.yaml", "name: mine\n"), "-m", "reg=none", "seed=1,2")
    assert result.code == 1
    assert result.err.count("Error: Expected `") == 1
    assert "no job was started" in result.err


def test_several_of_a_group(command: Command, tmp_path: Path) -> None:
    flag = own(tmp_path, "callbacks/lr_monitor.yaml", "mine:\n  _target_: lightning.pytorch.Callback\n")
    result = command(flag, "callbacks=[early_stopping,lr_monitor]")
    assert result.code == 1
    assert "which `callbacks=lr_monitor` means" in result.err


def test_what_is_not_chosen_or_the_same_is_no_matter(command: Command, tmp_path: Path) -> None:
    flag = own(tmp_path, "model/mlp.yaml", "name: mine\n")
    shutil.copy(CONFIG_DIR / "model" / "cnn.yaml", tmp_path / "own" / "model" / "cnn.yaml")
    result = command(flag, "model=cnn", "trainer.max_epochs=0")
    assert "Expected option `trainer.max_epochs` to be an integer of at least 1" in result.err


def test_a_file_that_is_no_yaml(command: Command, tmp_path: Path) -> None:
    flag = own(tmp_path, "model/mine.yaml", "name: mine\nnet: [1\n")
    result = command(flag, "model=mine")
    assert result.code == 1
    file = tmp_path / "own" / "model" / "mine.yaml"
    assert result.err.startswith(
        f"Error: Expected `{file}` to be YAML, but got a mistake in line 3, column 1: expected"
    )
    assert result.err.count("\n") == 1

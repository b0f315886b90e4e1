"""The commands of the documentation compose, with the files that a page tells to write."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_fisher.experiment import main
from lightning_fisher.experiment.config.compose import CONFIG_DIR, CONFIG_NAME
from lightning_fisher.experiment.config.resolvers import flat_config, register_resolvers
from tests.docs.pages import DOCS, blocks, commands

PROGRAM = re.compile(r"^(python run\.py|lightning-fisher|python -m lightning_fisher\.experiment)(?: (?P<rest>.*))?$")
RUNS = [
    pytest.param(match["rest"] or "", id=f"{page.stem}: {command}")
    for page, command in commands()
    if (match := PROGRAM.match(command))
]


@pytest.fixture
def pages_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files of docs/extending.md, each named by a comment at its top."""
    for language in ("python", "yaml"):
        for block in blocks(DOCS / "extending.md", language):
            if name := re.search(r"^# ([\w/]+\.(?:py|yaml))\b", block, re.MULTILINE):
                path = tmp_path / name[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_there_are_commands() -> None:
    assert len(RUNS) >= 10


@pytest.mark.parametrize("arguments", RUNS)
def test_command_composes(arguments: str, pages_files: Path) -> None:
    words = [word for word in shlex.split(arguments) if not word.startswith("-") and word != "job"]
    own = [f"file://{pages_files / 'my_configs'}"] if "--config-dir" in arguments else []
    parser = OverridesParser.create()
    overrides = []
    for override in parser.parse_overrides(words):
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [None]
        text = override.input_line if values == [None] else f"{override.key_or_group}={values[0]}"
        overrides.append(text.replace("my_model", "mlp"))
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(CONFIG_NAME, overrides=[*overrides, f"hydra.searchpath={own}"])
        assert flat_config(cfg)


def test_own_model_data_scenario_and_callback_train(
    pages_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["model.max_epochs=10", "data.validation_size=0", "metric.at_end=gamma", "metric.num_subsets=2"]
    quick += ["metric.every_n_validations=null", "metric.subset_size=20", "trainer.accelerator=cpu"]
    chosen = ["--config-dir=my_configs", "model=mlp", "data=blobs", "scenario=small", "model.net.width=32"]
    chosen += ["callbacks=announce", "callbacks.announce.every=9"]
    monkeypatch.setattr(sys, "argv", ["lightning-fisher", *chosen, *quick])
    main()
    said = capsys.readouterr().out
    assert "test error" in said
    assert [f"epoch {epoch} is over" in said for epoch in (1, 2, 10)] == [True, False, True]
    (path,) = pages_files.glob("outputs/blobs-mlp/*/result.json")
    row = json.loads(path.read_text())
    assert row["training_samples"] == 100
    assert row["parameters"] == 64 * 32 + 32 + 32 * 8 + 8
    assert row["test_error"] < 50  # by chance: 87.5

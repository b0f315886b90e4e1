"""Lists that the documentation gives are those of the software: choices, options, numbers of things."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_fisher.experiment.config.error_messages import listing
from lightning_fisher.functional.measures import MEASURES
from lightning_fisher.label_errors.command import parser
from tests.docs.pages import DOCS, PAGES, ROOT

CONF = ROOT / "conf"
QUOTED = re.compile(r"Expected option `(\w+)` to be ([\w, ]+), but got")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_choices_in_quoted_messages() -> None:
    found = [
        (path.name, group, named)
        for path in PAGES
        for group, named in QUOTED.findall(path.read_text(encoding="utf-8"))
        if (CONF / group).is_dir()
    ]
    assert found
    for name, group, named in found:
        assert named == listing(choices(group)), name


def test_every_method_is_named() -> None:
    (sentence,) = re.findall(r"On the command line they are (.*?), each", text("other-methods.md"), re.DOTALL)
    assert {name.removeprefix("reg=") for name in re.findall(r"`([\w=]+)`", sentence)} == set(choices("reg"))


def test_every_study_is_named() -> None:
    table = re.search(r"^\| `-m experiment=` \|.*?\n\n", text("experiments.md"), re.DOTALL | re.MULTILINE)
    assert table is not None
    named = set(re.findall(r"`(\w+)`", "".join(line.split(" | ")[0] for line in table[0].splitlines()[2:])))
    assert named == set(choices("experiment"))


def test_every_option_of_the_label_errors_command_is_on_its_page() -> None:
    options = {name for action in parser()._actions for name in action.option_strings if name.startswith("--")}
    assert options - {"--help"} <= set(re.findall(r"--[\w-]+", text("wrong-labels.md")))


def test_defaults_of_the_label_errors_command() -> None:
    made, page = parser(), text("wrong-labels.md")
    epochs, lr, batch = (made.get_default(name) for name in ("epochs", "lr", "batch_size"))
    assert f"the training: {epochs}, {lr}, {batch}" in page
    assert f"brought to, {made.get_default('image_size')}" in page
    assert f"`{made.get_default('score')}` (the default)" in page


@pytest.mark.parametrize("path", [ROOT / "README.md", DOCS / "gamma.md"], ids=lambda path: path.name)
def test_the_number_of_measures(path: Path) -> None:
    assert len(MEASURES) == 40
    assert re.search("forty", path.read_text(encoding="utf-8"), re.IGNORECASE)
    assert "two dozen" not in path.read_text(encoding="utf-8").lower()


def test_the_zoo_differs_in_as_many_ways_as_is_said() -> None:
    (sentence,) = re.findall(r"differ in one thing at a time: (.*?), each without", text("zoo.md"), re.DOTALL)
    ways = re.split(r",\s|\sand\s", re.sub(r"\s*\([^)]*\)", "", sentence))
    assert len(ways) == 8
    assert "differ in eight ways" in text("experiments.md")

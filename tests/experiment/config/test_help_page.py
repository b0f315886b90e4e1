"""The help page is written from the configs: every group and choice is on it, with what its file says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lightning_fisher
from lightning_fisher.experiment.config.compose import CONFIG_DIR, config_groups, known_options
from lightning_fisher.experiment.config.help_page import EXAMPLES, OPTIONS
from lightning_fisher.experiment.config.yaml_comments import about_file, about_options
from tests.experiment.conftest import Command
from tests.experiment.scored import run_in


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    result = run_in(tmp_path_factory.mktemp("help"), "--help")
    assert result.code == 0
    return result.out


def listed(page: str) -> dict[str, list[str]]:
    """The groups and choices of the page."""
    groups: dict[str, list[str]] = {}
    block = page.partition("Groups\n")[2].partition("\n\n")[0]
    group = ""
    for line in block.splitlines():
        if match := re.match(r"  (\S+)  ", line):
            group = match[1]
            groups[group] = []
        elif match := re.match(r"    [* ] (\S+)", line):
            groups[group].append(match[1])
    return groups


def test_groups_and_choices_are_those_on_disk(page: str) -> None:
    on_disk = {group: names for group, names in config_groups().items() if not group.startswith("study/")}
    assert listed(page) == on_disk


def test_defaults_are_marked(page: str) -> None:
    for group, name in (("model", "resnet8"), ("reg", "fisher"), ("logger", "csv"), ("size", "full")):
        marked = re.search(rf"\n  {group} .*?(?=\n  \S|\n\n)", page, re.DOTALL)
        assert marked is not None
        assert re.findall(r"\n    \* (\S+)", marked[0]) == [name]


def test_choices_have_what_their_files_say(page: str) -> None:
    for group, name in (("reg", "label_smoothing"), ("experiment", "table1"), ("data", "digits")):
        begin = about_file(CONFIG_DIR / group / f"{name}.yaml")[:30]
        assert len(begin) > 20
        assert re.search(rf"\* ?{name} +{re.escape(begin)}|  {name} +{re.escape(begin)}", page)


def test_the_page_follows_the_command(command: Command) -> None:
    page = command("model=wrn28_2", "reg=none", "--help").out
    assert "* wrn28_2" in page
    assert "* resnet8" not in page
    assert "model.max_epochs=200" in page


def test_options_are_real_and_explained(page: str) -> None:
    known = known_options([])
    for option in OPTIONS:
        assert option in known
        assert re.search(rf"\n  {re.escape(option)}=\S+ +\w", page), option


def test_nothing_is_left_of_the_template(page: str) -> None:
    assert "$" not in page
    assert all(len(line) <= 110 for line in page.splitlines())
    assert "\033[" not in page  # no terminal: no colors


def test_hydra_help_is_there(command: Command) -> None:
    assert "--multirun" in command("--hydra-help").out


@pytest.mark.parametrize("words", [words for words, _ in EXAMPLES if "outputs/" not in words])
def test_examples_compose(words: str, command: Command) -> None:
    """Of a sweep, its first job."""
    job = [re.sub(r"=([^,]+),.*", r"=\1", word) for word in words.split() if word != "-m"]
    result = command(*job, "--cfg", "job")
    assert result.code == 0, result.err
    assert "max_epochs" in result.out


def test_comments(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(
        "# @package _global_\n"
        "# What it is (Sec. 7.1, Jia et al. 2020): two\n"
        "# lines. And more.\n"
        "defaults:\n"
        "  - model: a  # of the network\n"
        "  - override /reg: none\n"
        "one:\n"
        "  two:\n"
        "    three: 'a # b'  # not # that\n"
        "  four: 4  # of one\n"
        "five: null\n"
    )
    assert about_file(file) == "What it is (Sec. 7.1, Jia et al. 2020): two lines"
    assert about_options(file) == {
        "defaults.model": "of the network",
        "one.two.three": "not # that",
        "one.four": "of one",
    }


def test_the_version_is_this_packages(tmp_path: Path) -> None:
    result = run_in(tmp_path, "--version")
    assert result.code == 0
    assert result.out.startswith(f"lightning-fisher {lightning_fisher.__version__} (Hydra ")

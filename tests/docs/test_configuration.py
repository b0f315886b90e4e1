"""The pages of the configuration are the files under conf/, whole."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from lightning_fisher.experiment.config import yaml_comments
from lightning_fisher.experiment.config.compose import flatten
from tests.docs.pages import DOCS, ROOT

CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
IDS = [path.relative_to(CONF).as_posix() for path in FILES]
HYDRA = ("hydra.callbacks", "hydra.sweeper.params")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "hooks"))
    return yaml_comments


@pytest.fixture
def pages(reader: ModuleType) -> dict[str, str]:
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    import configuration

    yield configuration.pages()
    sys.modules.pop("configuration")


def written(path: Path) -> dict[str, object]:
    """The options of a file, read by OmegaConf, without a prefix."""
    container = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return flatten({key: value for key, value in (container or {}).items() if key != "defaults"})


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_option_is_read_with_its_value(path: Path, reader: ModuleType) -> None:
    config = reader.read_config(path, CONF)
    expected = [(name, value) for name, value in written(path).items() if name]
    found = [(option.name, option.value) for option in config.options if option.value]
    for (name, text), (key, value) in zip(found, expected, strict=True):
        assert f".{name}".endswith(f".{key}")
        assert OmegaConf.to_container(OmegaConf.create(f"x: {text}"), resolve=False) == {"x": value}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_option_says_what_it_is(path: Path, reader: ModuleType) -> None:
    silent = [
        option.name
        for option in reader.read_config(path, CONF).options
        if not option.comment
        and not option.name.startswith(HYDRA)
        and option.name.rpartition(".")[2] not in ("_target_", "_partial_")
    ]
    assert not silent, f"conf/{path.relative_to(CONF)}: options without a comment"


def test_comments_are_read(tmp_path: Path, reader: ModuleType) -> None:
    path = tmp_path / "reg" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(
        "# What it is,\n# in two lines.\ndefaults:\n  - /data: digits  # chosen\n"
        'beta: 1.0    # its weight, "#1"\nname: "a # b"  # a text\nnode:  # a node\n  list: [1, 2]  # of numbers\n'
    )
    config = reader.read_config(path, tmp_path)
    assert config.header == "What it is, in two lines."
    assert config.defaults == [("data", "digits", "chosen")]
    assert [(option.name, option.value, option.comment) for option in config.options] == [
        ("reg.beta", "1.0", 'its weight, "#1"'),
        ("reg.name", '"a # b"', "a text"),
        ("reg.node", "", "a node"),
        ("reg.node.list", "[1, 2]", "of numbers"),
    ]


# What files of a group begin with is on no page of its own.
@pytest.mark.parametrize("path", [path for path in FILES if path != CONF / "no_optimizer.yaml"])
def test_every_option_is_on_a_page(path: Path, reader: ModuleType, pages: dict[str, str]) -> None:
    text = html.unescape("\n".join(pages.values()).replace("<wbr>", ""))
    for option in reader.read_config(path, CONF).options:
        name = option.name.removeprefix("hydra.sweeper.params").lstrip(".")
        assert (
            not name
            or f"| <code>{option.name}{'=' * bool(option.value)}{option.value}</code> |" in text
            or f"{name}={option.value}" in text
        )


def test_every_group_and_every_study_has_a_page(pages: dict[str, str]) -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"size", "study", "hydra"}
    studies = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    assert set(pages) == (
        {"configuration/index.md"}
        | {f"configuration/{group}.md" for group in groups}
        | {f"configuration/experiment/{study}.md" for study in studies}
    )


def test_an_interpolation_is_no_formula(pages: dict[str, str]) -> None:
    """A dollar sign would begin one; code blocks are left alone."""
    for path, text in pages.items():
        assert not re.search(
            r"(?<!\\)\$", re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        ), path


def test_code_in_comments_is_as_it_is_typed(pages: dict[str, str]) -> None:
    """Markdown shows a backslash there, but the one in front of a table's bar."""
    code = [span for text in pages.values() for span in re.findall(r"`([^`\n]+)`", text)]
    assert "-m experiment=select_parameter comparison=sam" in code
    assert [span for span in code if "\\" in span.replace("\\|", "")] == []
